"""The circuit of a circuit breaker: its state, what has been counted, and what follows from a call's result.

The decisions are functions of the circuit, the policy and the moment. They change the circuit they are given, which is
plain data; a home makes that atomic.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from opero.dataclass import dataclass
from opero.executors.state.windows import CountWindow, TimeWindow, new_window

if TYPE_CHECKING:
    from random import Random

    from opero.policies.circuit_breaker import CircuitBreakerPolicy

State = Literal["closed", "open", "half_open", "forced_open", "forced_closed"]

NOT_PASSING = -1
JITTER = 0.1
"""A circuit stays open up to this share longer or shorter, so that many processes do not probe at the same time."""
MAX_DOUBLINGS = 64


@dataclass
class Circuit:
    """A circuit as data. Every change of state begins a new period; a result counts only in its call's period.

    A call counts once in a period, by its latest result, however many attempts it makes.

    Attributes:
        state: that of `State`.
        period: its number.
        since: when it began.
        by_rate: the newest policy judges by a rate, so every result goes into the window.
        length: of the window, as the newest policy has it.
        window: the calls that rates are computed over.
        counted: how many calls have been added to windows.
        consecutive: calls in a row that failed.
        row: the number of that row.
        probes_begun, probes_passed, probes_failed: in a half-open circuit.
        reopened: how often in a row its probes have failed.
        jitter: the factor by which it stays open longer or shorter this time.
        last_error: the last failure or slow call, in one line.
        ended: of the calls that counted in the period before: how many failed, and how many there were.
    """

    state: State
    period: int
    since: float
    by_rate: bool
    length: int | float
    window: CountWindow | TimeWindow
    counted: int = 0
    consecutive: int = 0
    row: int = 0
    probes_begun: int = 0
    probes_passed: int = 0
    probes_failed: int = 0
    reopened: int = 0
    jitter: float = 1.0
    last_error: str = ""
    ended: tuple[int, int] = field(default=(0, 0), compare=False)

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


class Counted(NamedTuple):
    """How a call that failed has been counted. The result of its next attempt counts in the place of this one.

    Attributes:
        period: in which period of the circuit.
        row: in which row of failures.
        number: which of the calls that were added to windows it is.
        slow: whether it was slow as well.
    """

    period: int
    row: int
    number: int
    slow: bool


# Decisions


def new_circuit(policy: CircuitBreakerPolicy, now: float) -> Circuit:
    """A closed circuit."""
    return Circuit("closed", 0, now, policy.by_rate, policy.window, new_window(policy.window))


def state_at(circuit: Circuit, policy: CircuitBreakerPolicy, now: float) -> State:
    """The state as users see it: an open circuit is half open from the moment at which it would let a probe through."""
    return "half_open" if circuit.state == "open" and now >= opens_until(circuit, policy) else circuit.state


def opens_until(circuit: Circuit, policy: CircuitBreakerPolicy) -> float:
    """The moment from which an open circuit lets probes through."""
    doubled = policy.open_for * 2.0 ** min(circuit.reopened, MAX_DOUBLINGS)
    return circuit.since + min(doubled, policy.longest_open) * circuit.jitter


def details(circuit: Circuit, policy: CircuitBreakerPolicy, now: float) -> dict[str, Any]:
    """What is known of a circuit as plain data."""
    retry_in = max(0.0, opens_until(circuit, policy) - now) if circuit.state == "open" else None
    return {
        "state": state_at(circuit, policy, now),
        "for": max(0.0, now - circuit.since),
        "failures": circuit.consecutive,
        "retry_in": retry_in,
        "last_error": circuit.last_error,
    }


def enter(circuit: Circuit, state: State, now: float) -> None:
    """Begin a new period."""
    ended, window = _counted_in(circuit, now), new_window(circuit.length) if state == "closed" else None
    circuit.ended = ended
    circuit.state = state
    circuit.since = now
    circuit.period += 1
    circuit.consecutive = circuit.probes_begun = circuit.probes_passed = circuit.probes_failed = 0
    if window is not None:
        circuit.window = window
        circuit.reopened = 0


def _counted_in(circuit: Circuit, now: float) -> tuple[int, int]:
    """Return how many of the calls that count in this period have failed, and how many there are."""
    if circuit.state == "half_open":
        return circuit.probes_failed, circuit.probes_failed + circuit.probes_passed
    if circuit.state == "closed" and circuit.by_rate:
        counts = circuit.window.counts(now)
        return counts.failures, counts.calls
    return circuit.consecutive, circuit.consecutive


def _open(circuit: Circuit, now: float, random: Random) -> None:
    enter(circuit, "open", now)
    circuit.jitter = random.uniform(1 - JITTER, 1 + JITTER)


class Prober(Protocol):
    """A call that may be a probe. It is noted in the same moment as it is counted: see `SlotHolder`.

    Attributes:
        probe: the period in which it is a probe without a result; else negative.
    """

    probe: int


class _Nobody:
    """A caller that notes nothing."""

    probe = NOT_PASSING


def admit(
    circuit: Circuit, policy: CircuitBreakerPolicy, now: float, held: int = NOT_PASSING, prober: Prober | None = None
) -> int | Refusal:
    """Let an attempt through or not: the number of the period in which its result counts, or why it is refused.

    Args:
        circuit: is changed.
        policy: that of the call's executor.
        now: the clock's reading.
        held: the period in which an earlier attempt of the call has been let through. If that was as a probe, this one
            belongs to the same probe.
        prober: the call, in which it is noted that it is a probe.
    """
    if circuit.state == "open" and now >= opens_until(circuit, policy):
        enter(circuit, "half_open", now)
    if circuit.state == "half_open":
        return held if held == circuit.period else _admit_probe(circuit, policy, now, prober or _Nobody())
    if circuit.state in ("closed", "forced_closed"):
        return circuit.period
    if circuit.state == "forced_open":
        return Refusal("forced_open", None, circuit.last_error)
    return Refusal("open", max(0.0, opens_until(circuit, policy) - now), circuit.last_error)


def _admit_probe(circuit: Circuit, policy: CircuitBreakerPolicy, now: float, prober: Prober) -> int | Refusal:
    most = policy.half_open_calls
    prober.probe = NOT_PASSING
    if circuit.probes_passed >= most - policy.tolerated_probes:  # an older policy asked for more
        enter(circuit, "closed", now)
        return circuit.period
    if circuit.probes_begun >= most and now - circuit.since >= policy.open_for:
        enter(circuit, "half_open", now)  # probes that never came back are written off
    if circuit.probes_begun >= most:
        return Refusal("half_open", 0.0, circuit.last_error)
    circuit.probes_begun += 1
    prober.probe = circuit.period
    return circuit.period


def release(circuit: Circuit, period: int, counted: Counted | None = None, prober: Prober | None = None) -> None:
    """An attempt ended without a result that counts: it was cancelled, rejected, or its error is ignored."""
    if prober is not None:
        is_probe = prober.probe == period
        prober.probe = NOT_PASSING
    else:
        is_probe = counted is None or counted.period != period
    if is_probe and period == circuit.period and circuit.state == "half_open":
        circuit.probes_begun -= 1


def record(
    circuit: Circuit,
    policy: CircuitBreakerPolicy,
    now: float,
    random: Random,
    period: int,
    failed: bool,
    slow: bool,
    trouble: str,
    counted: Counted | None = None,
    prober: Prober | None = None,
) -> Counted | None:
    """Count a call by the result of its latest attempt.

    Args:
        circuit: is changed.
        policy: that of the call's executor.
        now: the clock's reading.
        random: draws for how long a circuit stays open.
        period: what `admit` returned for the attempt.
        failed, slow: the result.
        trouble: a failure or slow call in one line, else empty.
        counted: how the call has been counted by an earlier attempt.
        prober: the call, in which it is noted that it has a result.

    Returns:
        How the call is counted now; None after a success, which ends it.
    """
    if period != circuit.period:
        return counted
    if trouble:
        circuit.last_error = trouble
    if counted is not None and counted.period != period:
        counted = None
    number = 0
    if circuit.state == "closed":
        if not failed:
            if circuit.consecutive:
                circuit.consecutive = 0
                circuit.row += 1
        elif counted is None or counted.row != circuit.row:
            circuit.consecutive += 1
        if circuit.by_rate:
            number = _fill_window(circuit, now, failed, slow, counted)
        if _must_open(circuit, policy, now, failed):
            _open(circuit, now, random)
    elif circuit.state == "half_open":
        prober = prober or _Nobody()
        circuit.probes_failed += (failed or slow) - (counted is not None)
        circuit.probes_passed += not (failed or slow)
        prober.probe = NOT_PASSING
        _judge_probes(circuit, policy, now, random)
    return Counted(period, circuit.row, number, slow) if failed else None


def _fill_window(circuit: Circuit, now: float, failed: bool, slow: bool, counted: Counted | None) -> int:
    """Give the call a place in the window, or its place another result; return its number."""
    if counted is not None:
        later = circuit.counted - counted.number
        if circuit.window.replace(now, later, failed, slow, was_slow=counted.slow):
            return counted.number
    circuit.window.add(now, failed, slow)
    circuit.counted += 1
    return circuit.counted


def _must_open(circuit: Circuit, policy: CircuitBreakerPolicy, now: float, failed: bool) -> bool:
    most = policy.consecutive_failures
    if failed and most is not None and circuit.consecutive >= most:
        return True
    return circuit.by_rate and _has_reached_rate(circuit, policy, now)


def _judge_probes(circuit: Circuit, policy: CircuitBreakerPolicy, now: float, random: Random) -> None:
    tolerated = policy.tolerated_probes
    if circuit.probes_failed > tolerated:
        _open(circuit, now, random)
        circuit.reopened += 1
    elif circuit.probes_passed >= policy.half_open_calls - tolerated:
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


class Change(NamedTuple):
    """A change of state, as it is logged.

    Attributes:
        before, after: the states.
        reason: the last failure or slow call, if it has opened the circuit; else "".
        failures, calls: of the calls that counted in the state before: how many failed, and how many there were.
    """

    before: State
    after: State
    reason: str
    failures: int
    calls: int

    def __str__(self) -> str:
        return self.after.replace("_", " ") + (f" after {self.reason}" if self.reason else "")


def change_of(circuit: Circuit, before: State) -> Change | None:
    """Return how the state of a circuit has changed; None if it has not."""
    if circuit.state == before:
        return None
    return Change(before, circuit.state, circuit.last_error if circuit.state == "open" else "", *circuit.ended)
