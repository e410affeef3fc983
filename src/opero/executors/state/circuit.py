"""The circuit of a circuit breaker: its state, what has been counted, and what follows from a call's result.

The decisions are functions of the circuit, the policy and the moment. They change the circuit they are given, which is
plain data; a home makes that atomic.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, TypeVarTuple

from opero.executors.state.home import Home, Moved
from opero.executors.state.windows import CountWindow, TimeWindow, new_window
from opero.runtime.forking import renew_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.policies.circuit_breaker import CircuitBreakerPolicy

__all__ = [
    "Circuit",
    "CircuitHome",
    "LocalCircuit",
    "Refusal",
    "State",
    "admit",
    "apply_policy",
    "enter",
    "new_circuit",
    "record",
    "release",
    "state_at",
]

R = TypeVar("R")
Args = TypeVarTuple("Args")

State = Literal["closed", "open", "half_open", "forced_open", "forced_closed"]

NOT_PASSING = -1


@dataclass
class Circuit:
    """A circuit as data. Every change of state begins a new period; a result counts only in its call's period.

    Attributes:
        state: that of `State`.
        period: its number.
        since: when it began.
        by_rate: the newest policy judges by a rate, so every result goes into the window.
        length: of the window, as the newest policy has it.
        window: the calls that rates are computed over.
        consecutive: failures in a row.
        probes_begun, probes_passed: in a half-open circuit.
        last_error: the last failure or slow call, in one line.
    """

    state: State
    period: int
    since: float
    by_rate: bool
    length: int | float
    window: CountWindow | TimeWindow
    consecutive: int = 0
    probes_begun: int = 0
    probes_passed: int = 0
    last_error: str = ""

    @property
    def passing(self) -> int:
        """The number of the period if the circuit is closed, else -1."""
        return self.period if self.state == "closed" else NOT_PASSING

    @property
    def needs_results(self) -> bool:
        """Whether a success changes anything: it fills the window, ends a row of failures, or is a probe."""
        return self.by_rate or self.consecutive > 0 or self.state != "closed"


class Refusal(NamedTuple):
    """Why a call is not let through.

    Attributes:
        state: the circuit's.
        retry_in: seconds until it may be otherwise; None where only an operator can change that.
        last_error: what opened the circuit.
    """

    state: State
    retry_in: float | None
    last_error: str


# Decisions


def new_circuit(policy: CircuitBreakerPolicy, now: float) -> Circuit:
    """A closed circuit."""
    return Circuit("closed", 0, now, policy.by_rate, policy.window, new_window(policy.window))


def state_at(circuit: Circuit, policy: CircuitBreakerPolicy, now: float) -> State:
    """The state as users see it: an open circuit is half open from the moment at which it would let a probe through."""
    return "half_open" if circuit.state == "open" and now >= circuit.since + policy.open_for else circuit.state


def enter(circuit: Circuit, state: State, now: float) -> None:
    """Begin a new period."""
    circuit.state = state
    circuit.since = now
    circuit.period += 1
    circuit.consecutive = circuit.probes_begun = circuit.probes_passed = 0
    if state == "closed":
        circuit.window = new_window(circuit.length)


def admit(circuit: Circuit, policy: CircuitBreakerPolicy, now: float) -> int | Refusal:
    """Let a call through or not: the number of the period in which its result counts, or why it is refused."""
    if circuit.state == "open" and now >= circuit.since + policy.open_for:
        enter(circuit, "half_open", now)
    if circuit.state == "half_open":
        return _admit_probe(circuit, policy, now)
    if circuit.state in ("closed", "forced_closed"):
        return circuit.period
    if circuit.state == "forced_open":
        return Refusal("forced_open", None, circuit.last_error)
    return Refusal("open", max(0.0, circuit.since + policy.open_for - now), circuit.last_error)


def _admit_probe(circuit: Circuit, policy: CircuitBreakerPolicy, now: float) -> int | Refusal:
    most = policy.half_open_calls
    if circuit.probes_passed >= most:  # an older policy asked for more
        enter(circuit, "closed", now)
        return circuit.period
    if circuit.probes_begun >= most and now - circuit.since >= policy.open_for:
        enter(circuit, "half_open", now)  # probes that never came back are written off
    if circuit.probes_begun >= most:
        return Refusal("half_open", 0.0, circuit.last_error)
    circuit.probes_begun += 1
    return circuit.period


def release(circuit: Circuit, period: int) -> None:
    """A call ended without a result that counts: it was cancelled, rejected, or its error is ignored."""
    if period == circuit.period and circuit.state == "half_open":
        circuit.probes_begun -= 1


def record(
    circuit: Circuit, policy: CircuitBreakerPolicy, now: float, period: int, failed: bool, slow: bool, trouble: str
) -> None:
    """Count the result of a call.

    Args:
        circuit: is changed.
        policy: that of the call's executor.
        now: the clock's reading.
        period: what `admit` returned for the call.
        failed, slow: the result.
        trouble: a failure or slow call in one line, else empty.
    """
    if period != circuit.period:
        return
    if trouble:
        circuit.last_error = trouble
    if circuit.state == "closed":
        circuit.consecutive = circuit.consecutive + 1 if failed else 0
        if circuit.by_rate:
            circuit.window.add(now, failed, slow)
            if _has_reached_rate(circuit, policy, now):
                enter(circuit, "open", now)
                return
        if failed and policy.consecutive_failures is not None and circuit.consecutive >= policy.consecutive_failures:
            enter(circuit, "open", now)
    elif circuit.state == "half_open":
        if failed or slow:
            enter(circuit, "open", now)
        else:
            circuit.probes_passed += 1
            if circuit.probes_passed >= policy.half_open_calls:
                enter(circuit, "closed", now)


def _has_reached_rate(circuit: Circuit, policy: CircuitBreakerPolicy, now: float) -> bool:
    counts = circuit.window.counts(now)
    if not (counts.failures or counts.slow) or counts.calls < policy.least_calls:
        return False
    # Divided, not multiplied: 7 / 100 is the very number 0.07, while 0.07 * 100 is a little above 7.
    if policy.failure_rate is not None and counts.failures / counts.calls >= policy.failure_rate:
        return True
    return policy.slow_call is not None and counts.slow / counts.calls >= (policy.slow_rate or 1.0)


def apply_policy(circuit: Circuit, policy: CircuitBreakerPolicy) -> None:
    """Count on as a new policy asks for. What has been counted is kept, as far as its window holds it."""
    if not policy.by_rate:
        circuit.window = new_window(policy.window)  # a window that misses calls would be wrong later
    elif policy.window != circuit.length or type(policy.window) is not type(circuit.length):
        circuit.window = circuit.window.resized(policy.window)
    circuit.by_rate, circuit.length = policy.by_rate, policy.window


def change_to(circuit: Circuit) -> str:
    """What to log when the circuit has entered its state."""
    return circuit.state.replace("_", " ") + (f" after {circuit.last_error}" if circuit.state == "open" else "")


class CircuitHome(Home):
    """Keeps a circuit. Its values are the `Circuit`.

    While `passing` is not negative a call may pass and belongs to the period of that number. While `needs_results` is
    false a success has nothing to change. A call reads both without a lock.
    """

    if TYPE_CHECKING:  # a class attribute would make the access to an instance's own slower

        @property
        def passing(self) -> int: ...

        @property
        def needs_results(self) -> bool: ...

    @abstractmethod
    def change(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> tuple[R, str | None]:
        """Run a decision on the circuit: what it returned, and a change of state to be logged."""

    def add(self, values: Circuit) -> None:
        """The circuit that was there before is the one that counts."""


class LocalCircuit(CircuitHome):
    """Keeps the circuit in this process."""

    passing: int
    needs_results: bool

    def __init__(self, policy: CircuitBreakerPolicy, now: float) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.receive(new_circuit(policy, now))
        renew_in_child(self)

    def after_fork(self) -> None:
        self.lock = threading.Lock()  # a thread of the parent may hold it

    def change(self, decide: Callable[[Circuit, *Args], R], *args: *Args) -> tuple[R, str | None]:
        with self.lock:
            if self.location.home is not self:
                raise Moved
            circuit = self.circuit
            before, period = circuit.state, circuit.period
            result = decide(circuit, *args)
            if circuit.period != period or not circuit.by_rate:  # else `passing` and `needs_results` are as before
                self.receive(circuit)
            return result, None if circuit.state == before else change_to(circuit)

    def apply(self, policy: CircuitBreakerPolicy) -> None:
        with self.lock:
            apply_policy(self.circuit, policy)
            self.receive(self.circuit)

    def values(self) -> Circuit:
        return self.circuit

    def receive(self, values: Circuit) -> None:
        self.circuit = values
        self.passing = values.passing
        self.needs_results = values.needs_results

    def vacate(self) -> None:
        self.passing, self.needs_results = NOT_PASSING, True
