"""The circuit of a circuit breaker in redis, which the processes of all machines share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, TypeVarTuple, get_args

from opero.executors.state.circuit import (
    NOT_PASSING,
    Change,
    Circuit,
    Counted,
    State,
    apply_policy,
    change_of,
    enter,
    opens_until,
    record,
)
from opero.executors.state.circuit_home import CircuitHome
from opero.executors.state.redis_beat import BEAT
from opero.executors.state.redis_scripts import SECOND
from opero.executors.state.redis_state_scripts import EXCHANGE
from opero.executors.state.redis_store import Command
from opero.executors.state.windows import window_of
from opero.runtime.forking import renew_in_child
from opero.runtime.hosts import run_later
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.state.home import Home
    from opero.executors.state.redis_store import RedisStore
    from opero.policies.circuit_breaker import CircuitBreakerPolicy

R = TypeVar("R")
Args = TypeVarTuple("Args")

LONGEST_BLIND = 1.0
"""Seconds after which a call asks the server for the state rather than rely on what was known last."""
TRIES = 20
"""How often to try again, where other processes change the state at the same moment."""
MOST_RESULTS = 10_000
"""Results of calls that are kept until the server has them."""
COUNTED = 7
"""Where `record` has the argument of that name, after the circuit."""
LEAST_KEPT = 3600.0
"""Seconds for which the server keeps a circuit that is not used."""
STATES = frozenset(get_args(State))


# The circuit as text


def packed(circuit: Circuit, offset: float, told: int) -> str:
    """A circuit as text.

    Args:
        circuit: the circuit.
        offset: what a reading of the clock that it is by is ahead of the server's.
        told: when its window has been configured.
    """
    values = vars(circuit) | {"since": circuit.since - offset, "window": circuit.window.plain(offset), "told": told}
    return json.dumps(values, separators=(",", ":"))


def unpacked(text: bytes, offset: float) -> tuple[Circuit, int]:
    """The circuit that `packed` has made a text of, and when its window has been configured.

    Raises:
        ValueError, TypeError, KeyError: it is another text.
    """
    values = json.loads(text)
    told, values["ended"] = int(values.pop("told")), tuple(values["ended"])
    values["since"] += offset
    values["window"] = window_of(values["length"], values["window"], offset)
    if values["state"] not in STATES:
        raise ValueError(values["state"])
    return Circuit(**values), told


class RedisCircuit(CircuitHome):
    """Keeps the circuit in redis, and a copy of it in this process.

    While the circuit is closed, calls only read the copy, and count in it. Their results are sent four times a second,
    together. The server keeps the circuit as text with a number, and takes another one only from a process that knows
    the latest; any other process counts its results in that one first. What is more than a result, such as letting a
    probe through, is decided in the same way before the call goes on. So probes are counted over all processes.

    While redis cannot be used, the process goes on with its copy. When it is back, an open circuit counts more than a
    closed one.

    Args:
        store: the redis.
        key: the name of the circuit there.
        policy: what it is for.
        monotonic: tells the time.
        name: what messages begin with.
    """

    is_shared: ClassVar[bool] = True
    needs_results: bool

    def __init__(
        self, store: RedisStore, key: str, policy: CircuitBreakerPolicy, monotonic: Callable[[], float], name: str
    ) -> None:
        self.store = store
        self.key = f"opero:{{{key}}}".encode()
        self.monotonic = monotonic
        self.name = name
        self.lock = threading.RLock()
        self.policy = policy
        self._exchange = Command(EXCHANGE, (self.key,), (), 3)
        self._told = time.time_ns() // 1000
        self._has_warned = False
        self._offset: float | None = None  # what this clock is ahead of the server's
        self._version = 0  # the number of the circuit there that this one continues
        self._lost: int | None = None  # while the server cannot be used: the period in which that began
        self._fresh = self._known = 0.0  # until when the copy is as good as new, and until when it may be used
        self._news: list[tuple[tuple[Any, ...], int]] = []  # arguments of `record` that the server has not seen, and
        # the number of the call here
        self._numbers: dict[int, int] = {}  # a number that a call has here → the one that it has there
        self._has_changed = False  # by something else than results
        self._sending = threading.RLock()
        super().__init__()
        renew_in_child(self, "lock")

    def after_fork(self) -> None:
        """Leave to the parent what has not been sent, and probes."""
        self._sending = threading.RLock()
        self._news.clear()

    @property
    def blocks(self) -> bool:
        """Whether the server has to be asked. Results are counted here while the circuit is closed."""
        circuit, now = self.circuit, self.monotonic()
        if self._lost is not None:
            return False
        if circuit.state == "closed" or (circuit.state != "half_open" and self._retry_at > now):
            return now >= self._known
        return True

    @blocks.setter
    def blocks(self, value: bool) -> None:
        """It depends on the state; `Home` knows of none."""

    @property
    def trouble(self) -> str:
        """Why the server cannot be used, in one line; "" while it can."""
        return self.store.trouble

    @property
    def passing(self) -> int:
        if self.monotonic() >= self._fresh:
            return self._passing_unless_old()
        return self._passing

    def _passing_unless_old(self) -> int:
        """Have the copy brought up to date. If it is too old to be used, the call has to ask."""
        now = self.monotonic()
        self._fresh = now + BEAT
        self.store.beat.want(self)
        return self._passing if now < self._known or self._lost is not None else NOT_PASSING

    # The interface of all circuits

    def change(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> tuple[R, Change | None]:
        forces: Any = enter  # with other arguments than those that are known here
        for _ in range(TRIES):
            with self.lock:
                self.check()
                is_known = self.monotonic() < self._known
                if self._lost is not None or (is_known and self.circuit.state == "closed" and decide is not forces):
                    return self._decide_here(decide, args)
            with self._sending:
                trial, text, sent = None, "", 0
                if is_known:
                    with self.lock:
                        self.check()
                        trial, sent = copy(self.circuit), len(self._news)
                        result = decide(trial, *args)
                        if trial == self.circuit:
                            return result, None
                        text = self._text(trial)
                if self._ask(text) and trial is not None:
                    with self.lock:
                        before = self.circuit.state
                        self._sent(sent)
                        self._use(trial)
                        return result, change_of(trial, before)
        with self.lock:  # other processes have changed it at each try
            self.check()
            return self._decide_here(decide, args)

    def look(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> R:
        with self.lock:
            self.check()
            if self.monotonic() >= self._fresh:
                self._passing_unless_old()
            return decide(copy(self.circuit), *args)

    def apply(self, policy: CircuitBreakerPolicy) -> None:
        with self.lock:
            self.policy = policy
            self._told = max(self._told + 1, time.time_ns() // 1000)
            apply_policy(self.circuit, policy)
            self._has_changed = self._version > 0
            self._use(self.circuit)
        self.store.beat.want(self)

    def values(self) -> Circuit:
        return self.circuit

    def receive(self, values: Circuit) -> None:
        self._has_changed = True
        self._use(values)

    def add(self, values: Circuit) -> None:
        """The circuit on the server is the one that counts; where there is none, this one is."""
        if not hasattr(self, "circuit"):
            self._use(values)

    def vacate(self) -> None:
        self._passing, self.needs_results, self._fresh = NOT_PASSING, True, float("inf")

    def _pass(self, target: Home, receive: Callable[[Any], None]) -> None:
        if isinstance(target, RedisCircuit) and (target.store, target.key) == (self.store, self.key):
            target._continue(self)
            self.refer_to(target)
            self.vacate()
        else:
            super()._pass(target, receive)

    def _continue(self, old: RedisCircuit) -> None:
        """Continue with the copy of a home for an earlier policy."""
        with old.lock:
            self._offset, self._version, self._lost = old._offset, old._version, old._lost
            self._known, self._news = old._known, old._news
            self._has_changed, self._numbers = old._has_changed, old._numbers
            self._use(old.circuit)

    # Decisions, with the lock held

    def _use(self, circuit: Circuit) -> None:
        self._passing, self.needs_results = NOT_PASSING, True
        self.circuit = circuit
        self._retry_at = opens_until(circuit, self.policy) if circuit.state == "open" else float("inf")
        self._passing, self.needs_results = circuit.passing, circuit.needs_results

    def _decide_here(self, decide: Callable[..., R], args: tuple[Any, ...]) -> tuple[R, Change | None]:
        circuit = self.circuit
        before = circuit.state
        if decide is record:
            args = self._renumbered(args)
        result = decide(circuit, *args)
        if decide is record and self._lost is None:
            if len(self._news) < MOST_RESULTS:
                self._news.append((args, result.number if isinstance(result, Counted) else 0))
            if circuit.state != before:
                run_later(self.update)
            else:
                self.store.beat.want(self)
        self._use(circuit)
        return result, change_of(circuit, before)

    def _renumbered(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of `record` with the number that the call has on the server."""
        counted: Counted | None = args[COUNTED] if len(args) > COUNTED else None
        if counted is None or counted.number not in self._numbers:
            return args
        counted = counted._replace(number=self._numbers[counted.number])
        return (*args[:COUNTED], counted, *args[COUNTED + 1 :])

    def _sent(self, results: int) -> None:
        del self._news[:results]
        self._has_changed = False

    # The server

    def update(self) -> bool:
        """Send what the server's circuit lacks, and take over what it has; whether there is more to send."""
        with self._sending:
            for _ in range(TRIES):
                with self.lock:
                    if self.location.home is not self:
                        return False
                    sent = len(self._news)
                    has_news = (sent > 0 or self._has_changed) and self._offset is not None
                    text = self._text(self.circuit) if has_news else ""
                outcome = self._ask(text)
                if outcome is None:
                    return bool(self.circuit.state != "closed")  # to tell others of, once the server is back
                with self.lock:
                    if outcome and has_news:
                        self._sent(sent)
                    if not self._news and not self._has_changed:
                        return False
        return True

    def _text(self, circuit: Circuit) -> str:
        return packed(circuit, self._offset or 0.0, self._told)

    def _ask(self, text: str) -> bool | None:
        """Give the server a circuit, or only ask for its own.

        Returns:
            Whether the server had no other circuit than the one that this copy continues, and has taken what it was
            given; else the copy continues the server's now. None: the server cannot be used.
        """
        policy = self.policy
        window = policy.window if isinstance(policy.window, float) else 0.0
        kept = max(LEAST_KEPT, 2 * window, 2 * policy.longest_open)
        reply = self.store.ask(self._exchange, self._probe, self._version, text, int(kept * 1000))
        with self.lock:
            now = self.monotonic()
            if reply is None:
                if self._lost is None:
                    self._lost = self.circuit.period
                    self._news.clear()
                return None
            self._fresh, self._known = now + BEAT, now + LONGEST_BLIND
            lost, self._lost = self._lost, None
            self._offset = now - reply[0] / SECOND
            if len(reply) == 1:
                self._version = reply[0] if text else self._version
                if lost is not None and lost != self.circuit.period:
                    self._has_changed = True
                return True
            self._version = reply[1]
            if not reply[1]:  # there is none, such as after a restart of the server
                own = self.circuit
                self._has_changed = own.state != "closed" or own.counted > 0 or own.consecutive > 0
                return True
            try:
                circuit, told = unpacked(reply[2], self._offset)
            except (ValueError, TypeError, KeyError, AttributeError):  # another version's: it is replaced
                self._has_changed = True
                return False
            self._rebase(circuit, told, lost)
            return False

    def _rebase(self, circuit: Circuit, told: int, lost: int | None) -> None:
        """Continue the server's circuit: add to it what it lacks."""
        own = self.circuit
        if lost is not None and lost != own.period and circuit.state == "closed" and own.state != "closed":
            own.period = max(own.period, circuit.period + 1)
            circuit = own  # opened while the server could not be used
            self._has_changed = True
        elif self._has_changed and own.state != circuit.state and own.period > circuit.period:
            circuit = own
        else:
            for args, number in self._news:
                result = record(circuit, *self._renumbered(args))
                if result is not None and number and result.number != number:
                    self._numbers[number] = result.number
            while len(self._numbers) > MOST_RESULTS:
                del self._numbers[next(iter(self._numbers))]
        differs = circuit.length != self.policy.window or circuit.by_rate != self.policy.by_rate
        if differs and told < self._told:
            apply_policy(circuit, self.policy)
            self._has_changed = True
        elif differs and not self._has_warned:
            self._has_warned = True
            text = (
                "%s: its circuit breaker differs between the processes that share it: a window of %s is in force, "
                "which has been configured later than %s"
            )
            log("limit_differs", text, self.name, circuit.length, self.policy.window, policy=self.name)
        elif not differs:
            self._told = max(self._told, told)
        self._use(circuit)

    def _probe(self) -> None:
        self.store.run(self._exchange, self._version, "", 0)
