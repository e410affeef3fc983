"""Limits whose state several processes of a machine share: the same executors, with their state in a file.

An executor begins alone, and costs next to nothing. Once a map has worker processes, its executors move what they
count into a file each, and so do the workers': from then on every call takes the file's lock for some microseconds.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import struct
import threading
from typing import TYPE_CHECKING, Any

from opero.clock import SYSTEM
from opero.errors import ConfigError
from opero.executors.bulkhead import BulkheadExecutor
from opero.executors.circuit_breaker import CircuitBreakerExecutor
from opero.executors.ledger import Ledger, LockedLedger
from opero.executors.rate_limit import Meter, RateLimitExecutor
from opero.parallel.machine import started

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from opero.executors.call import Call, Host

__all__ = ["SharedLimits", "StateFile", "share_limits"]

KINDS = ("rate_limit", "circuit_breaker", "bulkhead")
LOOK, LONGEST_LOOK = 0.001, 0.01
"""Seconds between looks at a bulkhead that others may leave."""


class StateFile:
    """A few bytes that several processes share, and a lock for them, which the kernel frees when its holder dies.

    Args:
        path: the file. It exists already.

    Raises:
        ConfigError: there is no such file here.
    """

    # There are two slots for the state, and a byte that says which one counts. A process that is killed while it writes
    # has touched the other one only: what counts is always whole.

    HEADER = 16

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"the limits of this map are kept in {path}, which cannot be opened here ({error.strerror}): rate "
                "limit, circuit breaker and bulkhead are shared between the processes of one machine only; leave them "
                "out, or use mode='thread'"
            ) from error
        self._map = mmap.mmap(self._file, 0)
        self._slot = (len(self._map) - self.HEADER) // 2
        self._due = memoryview(self._map)[8:16].cast("d")
        self._lock = threading.Lock()
        self.holder = 0

    @classmethod
    def create(cls, path: Path, size: int) -> StateFile:
        """A new file for states of up to so many bytes."""
        path.write_bytes(bytes(cls.HEADER + 2 * (size + 8)))
        path.chmod(0o600)
        return cls(str(path))

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except BaseException:
            self._lock.release()
            raise
        self.holder = threading.get_ident()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.holder = 0
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._lock.release()

    # All below under the lock

    @property
    def number(self) -> float:
        """A number of its own beside the state, written at one stroke."""
        return self._due[0]

    @number.setter
    def number(self, value: float) -> None:
        self._due[0] = value

    def read(self) -> Any:
        start = self.HEADER + self._map[0] * self._slot
        (length,) = struct.unpack_from("q", self._map, start)
        return pickle.loads(self._map[start + 8 : start + 8 + length]) if length else None

    def write(self, state: Any) -> None:
        """Put a state in the place of the one that counts.

        Raises:
            ValueError: it is larger than the file was made for.
        """
        data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        if len(data) + 8 > self._slot:
            raise ValueError(f"a state of {len(data)} bytes does not fit into {self.path}")
        other = 1 - self._map[0]
        start = self.HEADER + other * self._slot
        struct.pack_into("q", self._map, start, len(data))
        self._map[start + 8 : start + 8 + len(data)] = data
        self._map[0] = other

    def __reduce__(self) -> Any:
        return StateFile, (self.path,)


# Rate limit


class _InFile:
    """Keeps the moment at which the next permit falls due in a file. Its own `_due` says never: `take` looks here."""

    __slots__ = ()

    _file: StateFile
    _monotonic: Callable[[], float]

    def book(self: Any, now: float, cost: float, patience: float) -> tuple[float, float]:
        with self._file:
            self._due = self._file.number
            try:
                booked = Ledger.book(self, now, cost, patience)
                self._file.number = self._due
            finally:
                self._due = float("inf")
        return booked

    def refund(self: Any, receipt: float, cost: float) -> None:
        with self._file:
            if self._file.number == receipt:
                self._file.number = receipt - cost * self._interval


class SharedLedger(_InFile, Ledger):
    __slots__ = ()


class SharedLockedLedger(_InFile, LockedLedger):
    __slots__ = ()


def _share_rate_limit(limiter: RateLimitExecutor, file: StateFile, *, first: bool) -> None:
    ledger = limiter.ledger
    with file:
        if first:
            file.number = ledger._due
        ledger.__class__ = SharedLockedLedger if isinstance(ledger, LockedLedger) else SharedLedger
        ledger._file = file  # type: ignore[attr-defined]  # it is one of those now
        ledger._due = float("inf")


# Circuit breaker


class _Loading:
    """A breaker's lock that brings its state from the file, and back."""

    FIELDS = (
        "_state",
        "_period",
        "_since",
        "_consecutive",
        "_probes_begun",
        "_probes_passed",
        "_last_error",
        "_window",
    )

    def __init__(self, breaker: SharedCircuitBreaker, file: StateFile) -> None:
        self.file = file
        self._breaker = breaker
        self._before: bytes | None = None

    @property
    def is_mine(self) -> bool:
        return self.file.holder == threading.get_ident()

    def __enter__(self) -> None:
        self.file.__enter__()
        try:
            self._breaker.__dict__.update(self.file.read())
        except BaseException:
            self.file.__exit__(None, None, None)
            raise

    def __exit__(self, *exception: Any) -> None:
        try:
            fields = self._breaker.__dict__
            self.file.write({name: fields[name] for name in self.FIELDS})
        finally:
            self.file.__exit__(*exception)


class SharedCircuitBreaker(CircuitBreakerExecutor):
    """Looks at the file whenever it is asked: to a call that holds no lock it is neither closed nor at rest."""

    @property
    def _state(self) -> Any:
        return self.__dict__["_state"] if self._lock.is_mine else "shared"  # type: ignore[attr-defined]

    @_state.setter
    def _state(self, state: Any) -> None:
        self.__dict__["_state"] = state

    @property
    def _alert(self) -> bool:
        return True

    @_alert.setter
    def _alert(self, alert: bool) -> None:
        pass


def _share_circuit_breaker(breaker: Any, file: StateFile, *, first: bool) -> None:
    lock = breaker._lock
    with lock:
        fields = breaker.__dict__
        if first:
            with file:
                file.write({name: fields[name] for name in _Loading.FIELDS})
        breaker._lock = _Loading(breaker, file)
        breaker.__class__ = SharedCircuitBreaker


# Bulkhead


class SharedBulkhead(BulkheadExecutor):
    """Places and a queue that processes share: a place belongs to a process, and one that dies gives its places back.

    Whoever waits looks again every few milliseconds, and takes a place when nobody is before it in the queue.
    """

    _file: StateFile
    _tickets = itertools.count()

    @property
    def running(self) -> int:
        with self._file:
            return sum(count for _, count in self._living(self._file.read())[0].items())

    @staticmethod
    def _living(state: Any) -> tuple[dict[tuple[int, float], int], list[tuple[tuple[int, float], int]]]:
        """The places and the queue, without those of processes that are gone."""
        places, queue = state
        owners = {*places, *(owner for owner, _ in queue)}
        gone = {owner for owner in owners if started(owner[0]) != owner[1]}
        if gone:
            places = {owner: count for owner, count in places.items() if owner not in gone}
            queue = [ticket for ticket in queue if ticket[0] not in gone]
        return places, queue

    def _try(self, ticket: tuple[tuple[int, float], int] | None) -> bool:
        """Take a place, if there is one that nobody else has queued for longer."""
        me = _me()
        with self._file:
            places, queue = self._file.read()
            if sum(places.values()) >= self.policy.max_concurrent or (queue and queue[0] != ticket):
                places, queue = self._living((places, queue))
            is_next = not queue or queue[0] == ticket
            if sum(places.values()) >= self.policy.max_concurrent or not is_next:
                if ticket is not None and ticket not in queue:
                    queue = [*queue, ticket]
                self._file.write((places, queue))
                return False
            places = {**places, me: places.get(me, 0) + 1}
            self._file.write((places, [each for each in queue if each != ticket]))
            return True

    def take(self) -> bool:
        return self._try(None)

    def leave(self) -> None:
        while self._queue:  # whoever queued before the places were shared has his handed on
            turn = self._queue.popleft()
            turn.served = turn.waiter.wake()
            if turn.served:
                return
        me = _me()
        with self._file:
            places, queue = self._file.read()
            left = places.get(me, 0) - 1
            self._file.write(
                (
                    {
                        **{owner: each for owner, each in places.items() if owner != me},
                        **({me: left} if left > 0 else {}),
                    },
                    queue,
                )
            )

    async def queue(self, host: Host, call: Call) -> None:
        began = self.clock.monotonic()
        left = call.time_left(began)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        if patience <= 0:
            raise self.refusal(call, patience)
        ticket, pause = (_me(), next(self._tickets)), LOOK
        call.stats.waits += 1
        try:
            while not self._try(ticket):
                rest = patience - (self.clock.monotonic() - began)
                if rest <= 0:
                    raise self.refusal(call, patience)
                await host.sleep(min(pause, rest))
                pause = min(LONGEST_LOOK, pause * 1.5)
        except BaseException:
            with self._file:
                places, queue = self._file.read()
                self._file.write((places, [each for each in queue if each != ticket]))
            raise
        finally:
            waited = self.clock.monotonic() - began
            call.stats.waited += waited
            call.waited += waited


_own: dict[int, tuple[int, float]] = {}


def _me() -> tuple[int, float]:
    """This process: its number, and when it began, as numbers are used again."""
    pid = os.getpid()
    if pid not in _own:
        _own[pid] = pid, started(pid)
    return _own[pid]


def _share_bulkhead(bulkhead: Any, file: StateFile, *, first: bool) -> None:
    with bulkhead._lock:
        if first:
            held = bulkhead.policy.max_concurrent - bulkhead._free
            with file:
                file.write(({_me(): held} if held else {}, []))
        bulkhead._file = file
        bulkhead.__class__ = SharedBulkhead


# All of them

_SHARE: dict[str, Callable[..., None]] = {
    "rate_limit": _share_rate_limit,
    "circuit_breaker": _share_circuit_breaker,
    "bulkhead": _share_bulkhead,
}
_sharing = threading.Lock()
_files: dict[int, tuple[Any, StateFile]] = {}
"""By their identity, the executors that share their state, and the files."""
_numbers = itertools.count()


class SharedLimits:
    """Where the limits of a function keep their state, for its worker processes: what `Binding` takes as `share`.

    Attributes:
        paths: kind of policy → file.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.paths = dict(paths)

    def __call__(self, kind: str, policy: Any, make: Callable[..., Any]) -> Any:
        """A worker's executor, which shares its state with the parent's.

        Raises:
            ConfigError: the state is not to be found on this machine.
        """
        executor = make()
        if kind in self.paths:
            _SHARE[kind](executor, StateFile(self.paths[kind]), first=False)
        return executor


def share_limits(executors: Mapping[str, Any], name: str, folder: Path) -> SharedLimits | None:
    """Have the limits among these executors share their state with worker processes.

    Args:
        executors: kind of policy → its executor.
        name: the function's, for messages.
        folder: where to put the files.

    Returns:
        None where there are no limits.

    Raises:
        ConfigError: one is on a clock of its own, or this platform has no locks that processes share.
    """
    paths = {}
    for kind in KINDS:
        executor = executors.get(kind)
        if executor is None:
            continue
        if isinstance(executor, Meter):
            executor = executor.limiter
        if executor.clock is not SYSTEM:
            raise ConfigError(
                f"{name}: its {kind} runs on a clock of its own, which worker processes do not have; use mode='thread'"
            )
        if fcntl is None:  # pragma: no cover  # Windows
            raise ConfigError(f"{name}: {kind} cannot be shared between processes on this platform; use mode='thread'")
        with _sharing:
            held = _files.get(id(executor))
            if held is None:
                file = StateFile.create(folder / f"{kind}-{next(_numbers)}", _size(kind, executor))
                _SHARE[kind](executor, file, first=True)
                held = _files[id(executor)] = executor, file
        paths[kind] = held[1].path
    return SharedLimits(paths) if paths else None


def _size(kind: str, executor: Any) -> int:
    """Bytes that its state may take."""
    if kind == "circuit_breaker" and isinstance(executor.policy.window, int):
        return 4096 + 16 * executor.policy.window
    return 1 << 16 if kind == "bulkhead" else 8192
