"""Limits whose state several processes of a machine share: the same executors, with their state in a file.

An executor begins alone, and costs next to nothing. Once a map has worker processes, its executors move what they
count into a file each, and so do the workers': from then on a call that counts takes the file's lock for some
microseconds.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import struct
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from opero.clock import SYSTEM
from opero.errors import ConfigError
from opero.executors.bulkhead import BulkheadExecutor, _Turn
from opero.executors.circuit_breaker import CircuitBreakerExecutor
from opero.executors.ledger import FOREVER, Ledger, LockedLedger
from opero.executors.rate_limit import Meter, RateLimitExecutor
from opero.interrupts import uninterrupted
from opero.parallel.machine import started

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from opero.executors.call import Call, Host, Waiter

__all__ = ["SharedLimits", "StateFile", "share_limits"]

KINDS = ("rate_limit", "circuit_breaker", "bulkhead")
LOOK, LONGEST_LOOK = 0.001, 0.01
"""Seconds between looks at a bulkhead that others may leave."""
MANY_OWNERS = 64
"""From so many processes with places on, those that are gone are looked for at each change."""


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
    _all: ClassVar[weakref.WeakSet[StateFile]] = weakref.WeakSet()

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"the limits of this map are kept in {path}, which cannot be opened here ({error.strerror}): rate "
                "limit, circuit breaker and bulkhead are shared between the processes of one machine only; leave them "
                "out, or use mode='thread'"
            ) from error
        self._map = mmap.mmap(self._file, 0)
        self._slot = (len(self._map) - self.HEADER) // 2
        self._due = memoryview(self._map)[8:16].cast("d")
        self._all.add(self)

    @classmethod
    def create(cls, path: Path, size: int) -> StateFile:
        """A new file for states of up to so many bytes. It goes when nobody here uses it any more."""
        path.write_bytes(bytes(cls.HEADER + 2 * (size + 8)))
        path.chmod(0o600)
        file = cls(str(path))
        weakref.finalize(file, _unlink, file.path, os.getpid()).atexit = False
        return file

    def _open(self) -> None:
        # A lock belongs to what was opened: threads share it, and so would a forked child, so each has a lock besides.
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, self._file)
        self._closing.atexit = False
        self._lock = threading.Lock()
        self.holder = 0

    @classmethod
    def _reopen_all(cls) -> None:
        """In a forked child: have locks of its own. What they guard it still shares with its parent."""
        for file in list(cls._all):
            close = file._closing
            with suppress(OSError):  # its parent has ended already
                file._open()
                close()

    def __enter__(self) -> None:
        # Opero's timeouts throw nothing into this thread until it has left again: the lock would stay taken.
        me = threading.get_ident()
        uninterrupted.add(me)
        try:
            self._lock.acquire()
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)
            except BaseException:
                self._lock.release()
                raise
        except BaseException:
            uninterrupted.discard(me)
            raise
        self.holder = me

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        me, self.holder = self.holder, 0
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._lock.release()
        uninterrupted.discard(me)

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the lock."""
        return self.holder == threading.get_ident()

    # May be read without the lock: each is written at one stroke

    @property
    def number(self) -> float:
        """A number of its own beside the state."""
        return self._due[0]

    @number.setter
    def number(self, value: float) -> None:
        self._due[0] = value

    @property
    def flag(self) -> bool:
        """A flag of its own beside the state."""
        return bool(self._map[1])

    @flag.setter
    def flag(self, value: bool) -> None:
        self._map[1] = value

    # Under the lock

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


def _unlink(path: str, creator: int) -> None:
    if os.getpid() == creator:  # and not in its forked child
        with suppress(OSError):
            os.unlink(path)


# Rate limit


class _InFile:
    """Keeps the moment at which the next permit falls due in a file. Its own `_due` says never: `take` looks here."""

    __slots__ = ()

    _file: StateFile
    _booker: Ledger
    """Does the sums, under the file's lock: nobody else asks it."""

    def book(self, now: float, cost: float, patience: float) -> tuple[float, float]:
        with self._file:
            self._booker._due = self._file.number
            booked = self._booker.book(now, cost, patience)
            self._file.number = self._booker._due
        return booked

    def refund(self, receipt: float, cost: float) -> None:
        with self._file:
            self._booker._due = self._file.number
            self._booker.refund(receipt, cost)
            self._file.number = self._booker._due


class SharedLedger(_InFile, Ledger):
    __slots__ = ()


class SharedLockedLedger(_InFile, LockedLedger):
    __slots__ = ()


def _share_rate_limit(limiter: RateLimitExecutor, file: StateFile, *, first: bool) -> None:
    ledger, policy = limiter.ledger, limiter.policy
    with file:  # whoever books meanwhile waits for it
        ledger._booker = Ledger(policy.rate, policy.burst, limiter.clock.monotonic)
        ledger._file = file
        ledger.__class__ = SharedLockedLedger if isinstance(ledger, LockedLedger) else SharedLedger
        due, ledger._due = ledger._due, FOREVER
        if first:
            file.number = due


# Circuit breaker


class _Loading:
    """A breaker's lock that brings its state from the file, and back.

    Beside the state the file holds the number of the period while the circuit is closed, else -1, and a flag that says
    whether there is a failure to forget: so calls that find nothing to do need no lock.
    """

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

    def __init__(self, breaker: Any, file: StateFile) -> None:
        self._file = file
        self._fields = breaker.__dict__

    def __enter__(self) -> None:
        self._file.__enter__()
        try:
            self._fields.update(self._file.read())
        except BaseException:
            self._file.__exit__(None, None, None)
            raise

    def __exit__(self, *exception: Any) -> None:
        try:
            self.write()
        finally:
            self._file.__exit__(*exception)

    def write(self) -> None:
        fields = self._fields
        self._file.write({name: fields[name] for name in self.FIELDS})
        self._file.number = fields["_period"] if fields["_state"] == "closed" else -1
        self._file.flag = bool(fields["_consecutive"])


class SharedCircuitBreaker(CircuitBreakerExecutor):
    """Looks at the file whenever it is asked. To who holds no lock it is closed, or something that he must look up."""

    _lock: _Loading  # type: ignore[assignment]

    @property
    def _state(self) -> Any:
        file = self._lock._file
        return self.__dict__["_state"] if file.is_mine else "closed" if file.number >= 0 else "shared"

    @_state.setter
    def _state(self, state: Any) -> None:
        self.__dict__["_state"] = state

    @property
    def _period(self) -> int:
        file = self._lock._file
        return self.__dict__["_period"] if file.is_mine else int(file.number)

    @_period.setter
    def _period(self, period: int) -> None:
        self.__dict__["_period"] = period

    @property
    def _alert(self) -> bool:
        return self.by_rate or self._lock._file.number < 0 or self._lock._file.flag

    @_alert.setter
    def _alert(self, alert: bool) -> None:
        pass

    def _enter(self, state: Any, now: float | None = None) -> None:
        if self._lock._file.is_mine:
            super()._enter(state, now)
        else:  # somebody has waited for the lock that this breaker had before
            with self._lock:
                super()._enter(state, now)


def _share_circuit_breaker(breaker: Any, file: StateFile, *, first: bool) -> None:
    with breaker._lock:
        loading = _Loading(breaker, file)
        if first:
            with file:
                loading.write()
        breaker._lock = loading
        breaker.__class__ = SharedCircuitBreaker


# Bulkhead

Owner = tuple[int, float]
"""A process: its number, and when it began, as numbers are used again."""


class _Looking(_Turn):
    """A caller who queues for places that processes share. The first of a process looks whether it is his turn."""

    __slots__ = ("arrived",)

    def __init__(self, waiter: Waiter, arrived: float) -> None:
        super().__init__(waiter)
        self.arrived = arrived


class SharedBulkhead(BulkheadExecutor):
    """Places that processes share: a place belongs to a process, and one that dies gives its places back.

    The file holds how many places each process has, and since when its first caller has queued. That one looks again
    every few milliseconds, and takes a place when none has queued for longer; the others of its process wait for him.
    """

    _file: StateFile
    _all: ClassVar[weakref.WeakSet[SharedBulkhead]] = weakref.WeakSet()

    @classmethod
    def _renew_all(cls) -> None:
        """In a forked child: who queued were threads of its parent."""
        for bulkhead in list(cls._all):
            bulkhead._lock = threading.Lock()
            bulkhead._queue.clear()

    @property
    def running(self) -> int:
        with self._file:
            return sum(_living(self._file.read())[0].values())

    def take(self) -> bool:
        with self._lock:
            return not self._queue and self._try(FOREVER)

    def leave(self) -> None:
        with self._lock:
            while self._queue and type(self._queue[0]) is _Turn:  # he queued before the places were shared
                turn = self._queue.popleft()
                turn.served = turn.waiter.wake()
                if turn.served:
                    self._wake_first()
                    return
            self._give_back()

    def _step_out(self, turn: _Turn) -> bool:
        stepped_out = super()._step_out(turn)
        with self._lock:
            self._wake_first()
        return stepped_out

    # Under the lock

    @property
    def _free(self) -> int:
        """None of its own any more; who has waited for the lock since before that may still give one back."""
        return 0

    @_free.setter
    def _free(self, free: int) -> None:
        if free:
            self._give_back()

    def _give_back(self) -> None:
        me = _me()
        with self._file:
            places, queue = self._file.read()
            left = places.pop(me, 0) - 1
            self._file.write(({**places, me: left} if left > 0 else places, queue))
        self._wake_first()

    def _try(self, arrived: float) -> bool:
        """Take a place, if there is one that nobody has queued for since before that moment; else queue from then."""
        me, most = _me(), self.policy.max_concurrent
        with self._file:
            state = places, queue = self._file.read()
            if queue or sum(places.values()) >= most or len(places) > MANY_OWNERS:
                places, queue = _living(state)
            free = sum(places.values()) < most and all(since >= arrived for each, since in queue.items() if each != me)
            if arrived == FOREVER:  # a newcomer, behind all who queue
                free = free and not queue
            if free:
                queue = {each: since for each, since in queue.items() if each != me}
                if len(self._queue) > 1:
                    queue[me] = getattr(self._queue[1], "arrived", 0.0)
                places = {**places, me: places.get(me, 0) + 1}
            elif arrived != FOREVER:
                queue = {**queue, me: arrived}
            if (places, queue) != state:
                self._file.write((places, queue))
            return free

    def _look(self, turn: _Looking, waiter: Waiter) -> bool:
        """Take a place, if it is this caller's turn; else `waiter` will be woken when that may be."""
        with self._lock:
            turn.waiter = waiter
            if self._queue[0] is not turn or not self._try(turn.arrived):
                return False
            self._queue.popleft()
            self._wake_first()
            return True

    def _wake_first(self) -> None:
        while self._queue and type(self._queue[0]) is _Looking and not self._queue[0].waiter.wake():
            self._queue.popleft()  # his event loop has been closed

    def _leave_queue(self, turn: _Turn) -> None:
        with self._lock:
            if turn not in self._queue:
                return
            was_first = self._queue[0] is turn
            self._queue.remove(turn)
            if was_first:
                me = _me()
                with self._file:
                    places, queue = self._file.read()
                    queue.pop(me, None)
                    if self._queue:
                        queue[me] = getattr(self._queue[0], "arrived", 0.0)
                    self._file.write((places, queue))
                self._wake_first()

    # What waits

    async def queue(self, host: Host, call: Call) -> None:
        began = self.clock.monotonic()
        left = call.time_left(began)
        patience = left if self.policy.max_wait is None else min(left, self.policy.max_wait)
        if patience <= 0:
            raise self.refusal(call, patience)
        call.stats.waits += 1
        pause = LOOK
        turn = _Looking(host.waiter(), began)
        with self._lock:
            self._queue.append(turn)
        try:
            while not self._look(turn, waiter := host.waiter()):
                rest = patience - (self.clock.monotonic() - began)
                if rest <= 0:
                    raise self.refusal(call, patience)
                if self._queue[0] is turn:
                    rest = min(pause, rest)
                    pause = min(LONGEST_LOOK, pause * 1.5)
                await waiter.wait(None if rest == FOREVER else rest)
        finally:
            self._leave_queue(turn)
            waited = self.clock.monotonic() - began
            call.stats.waited += waited
            call.waited += waited


def _living(state: tuple[dict[Owner, int], dict[Owner, float]]) -> tuple[dict[Owner, int], dict[Owner, float]]:
    """The places and the queue, without those of processes that are gone."""
    places, queue = state
    gone = {owner for owner in (*places, *queue) if started(owner[0]) != owner[1]}
    if not gone:
        return state
    return (
        {owner: count for owner, count in places.items() if owner not in gone},
        {owner: since for owner, since in queue.items() if owner not in gone},
    )


_own: dict[int, Owner] = {}


def _me() -> Owner:
    pid = os.getpid()
    if pid not in _own:
        _own[pid] = pid, started(pid)
    return _own[pid]


def _share_bulkhead(bulkhead: Any, file: StateFile, *, first: bool) -> None:
    with bulkhead._lock:
        if first:
            held = bulkhead.policy.max_concurrent - bulkhead._free
            with file:
                file.write(({_me(): held} if held else {}, {}))
        bulkhead._file = file
        bulkhead.__class__ = SharedBulkhead
        SharedBulkhead._all.add(bulkhead)


# All of them

_SHARE: dict[str, Callable[..., None]] = {
    "rate_limit": _share_rate_limit,
    "circuit_breaker": _share_circuit_breaker,
    "bulkhead": _share_bulkhead,
}
_sharing = threading.Lock()
_numbers = itertools.count()


def _forget_lock() -> None:
    global _sharing  # noqa: PLW0603  # a thread of the parent may hold it
    _sharing = threading.Lock()
    StateFile._reopen_all()
    SharedBulkhead._renew_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


class SharedLimits:
    """Where the limits of a function keep their state, for its worker processes: what `Binding` takes as `share`.

    Attributes:
        paths: kind of policy → file.
        names: kind of policy → the name that its messages have: the profile's, where it is one's.
    """

    def __init__(self, paths: Mapping[str, str], names: Mapping[str, str]) -> None:
        self.paths = dict(paths)
        self.names = dict(names)

    def __call__(self, kind: str, policy: Any, make: Callable[..., Any]) -> Any:
        """A worker's executor, which shares its state with the parent's.

        Raises:
            ConfigError: the state is not to be found on this machine.
        """
        if kind not in self.paths:
            return make()
        executor = make(self.names[kind])
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
    paths, names = {}, {}
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
            file = _file_of(kind, executor)
            if file is None:
                file = StateFile.create(folder / f"{kind}-{next(_numbers)}", _size(kind, executor))
                _SHARE[kind](executor, file, first=True)
        paths[kind], names[kind] = file.path, executor.name
    return SharedLimits(paths, names) if paths else None


def _file_of(kind: str, executor: Any) -> StateFile | None:
    """Where an executor keeps its state, if it shares it already."""
    holders = {"rate_limit": "ledger", "circuit_breaker": "_lock"}
    return getattr(getattr(executor, holders[kind]) if kind in holders else executor, "_file", None)


def _size(kind: str, executor: Any) -> int:
    """Bytes that its state may take: a circuit breaker's window of calls takes one each."""
    if kind == "circuit_breaker" and isinstance(executor.policy.window, int):
        return 8192 + executor.policy.window
    return 1 << 16 if kind == "bulkhead" else 8192
