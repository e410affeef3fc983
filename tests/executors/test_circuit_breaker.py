"""The circuit breaker against a plain model, through bound functions, and under threads."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from executors.steady import steady
from opero import BulkheadFullError, CircuitBreakerPolicy, CircuitOpenError, Policy
from opero.executors.circuit_breaker import CircuitBreakerExecutor
from opero.executors.state.circuit import NOT_PASSING, Counted
from opero.executors.state.shared_circuit import ROOM, SharedCircuit
from opero.runtime.state_file import StateFile
from opero.testing import VirtualClock

POLICIES = st.one_of(
    st.builds(
        CircuitBreakerPolicy,
        consecutive_failures=st.integers(1, 3),
        half_open_calls=st.integers(1, 3),
        open_for=st.integers(1, 5),
    ),
    st.builds(
        CircuitBreakerPolicy,
        failure_rate=st.sampled_from([0.25, 0.5, 1.0]),
        window=st.integers(4, 6),
        min_calls=st.integers(1, 4),
        half_open_calls=st.integers(1, 2),
        open_for=st.just(3),
        open_for_max=st.sampled_from([3, 10]),
    ),
    st.builds(
        CircuitBreakerPolicy,
        consecutive_failures=st.one_of(st.none(), st.just(3)),
        failure_rate=st.sampled_from([0.5, 1.0]),
        window=st.just("40s"),
        min_calls=st.integers(1, 4),
        half_open_calls=st.integers(4, 5),
        half_open_rate=st.sampled_from([0.25, 0.5]),
        open_for=st.just(2),
    ),
    st.builds(
        CircuitBreakerPolicy,
        failure_rate=st.none(),
        slow_call=st.just(2),
        slow_rate=st.sampled_from([0.5, 1.0]),
        window=st.just(4),
        min_calls=st.integers(1, 4),
        open_for=st.just(3),
    ),
)


class Call:
    """A call of the model, and how the breaker has counted it."""

    def __init__(self) -> None:
        self.counted: Counted | None = None
        self.running: tuple[int, int] | None = None


class Model:
    """The breaker as its documentation describes it, as simple as can be."""

    def __init__(self, policy: CircuitBreakerPolicy) -> None:
        self.policy = policy
        self.random = random.Random(0)  # as the clock's
        self.period = 0
        self.failed_probes_in_a_row = 0
        self.enter("closed", 0.0)

    def enter(self, state: str, now: float) -> None:
        self.state, self.since = state, now
        self.period += 1
        self.row: set[Call] = set()
        self.probes: dict[Call, str] = {}
        if state == "closed":
            self.window: list[tuple[Call, float, bool, bool]] = []
            self.failed_probes_in_a_row = 0
        if state == "open":
            doubled = self.policy.open_for * 2**self.failed_probes_in_a_row
            most = self.policy.open_for_max or 10 * self.policy.open_for
            self.until = now + min(doubled, most) * self.random.uniform(0.9, 1.1)

    def admit(self, call: Call, now: float) -> int | None:
        if self.state == "open" and now >= self.until:
            self.enter("half_open", now)
        if self.state == "half_open":
            most = self.policy.half_open_calls
            if call not in self.probes:
                if len(self.probes) >= most and now >= self.since + self.policy.open_for:
                    self.enter("half_open", now)
                if len(self.probes) >= most:
                    return None
                self.probes[call] = "runs"
            return self.period
        return self.period if self.state in ("closed", "forced_closed") else None

    def end(self, call: Call, period: int, now: float, result: str, slow: bool) -> None:
        if period != self.period:
            return
        slow = slow and self.policy.slow_call is not None
        if self.state == "half_open":
            if result != "nothing":
                self.probes[call] = "failed" if result == "failure" or slow else "passed"
                self.judge_probes(now)
            elif self.probes[call] == "runs":
                del self.probes[call]
        elif self.state == "closed" and result != "nothing":
            if result == "failure":
                self.row.add(call)
            else:
                self.row.clear()
            self.count(call, now, result == "failure", slow)
            if self.must_open(now):
                self.enter("open", now)

    def judge_probes(self, now: float) -> None:
        results = list(self.probes.values())
        tolerated = int((self.policy.half_open_rate or 0) * self.policy.half_open_calls)
        if results.count("failed") > tolerated:
            self.failed_probes_in_a_row += 1
            self.enter("open", now)
        elif results.count("passed") >= self.policy.half_open_calls - tolerated:
            self.enter("closed", now)

    def count(self, call: Call, now: float, failed: bool, slow: bool) -> None:
        self.window = self.held(now)
        for place, (other, since, _, _) in enumerate(self.window):
            if other is call:
                self.window[place] = (call, since, failed, slow)
                return
        self.window = [*self.window, (call, now, failed, slow)]

    def held(self, now: float) -> list[tuple[Call, float, bool, bool]]:
        if isinstance(self.policy.window, int):
            return self.window[-self.policy.window :]
        tenth = self.policy.window / 10
        return [each for each in self.window if each[1] // tenth > now // tenth - 10]

    def must_open(self, now: float) -> bool:
        policy, window = self.policy, self.held(now)
        if policy.consecutive_failures and len(self.row) >= policy.consecutive_failures:
            return True
        if len(window) < policy.least_calls:
            return False
        if policy.failure_rate and sum(each[2] for each in window) >= policy.failure_rate * len(window):
            return True
        slow = sum(each[3] for each in window)
        return policy.slow_call is not None and slow >= (policy.slow_rate or 1) * len(window)


class BreakerAndModel(RuleBasedStateMachine):
    """Calls make attempts, which begin and end in any order while time passes; after each step both agree."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.calls: list[Call] = []

    @initialize(policy=POLICIES, shared=st.booleans())
    def begin(self, policy: CircuitBreakerPolicy, shared: bool) -> None:
        self.clock = VirtualClock()
        self.clock.now = 0.0
        self.breaker = CircuitBreakerExecutor(policy, self.clock, "test")
        if shared:
            self.breaker.move_to(SharedCircuit(StateFile.create(self.folder / "circuit", ROOM + 16)))
        self.model = Model(policy)

    def attempt(self, call: Call) -> None:
        expected = self.model.admit(call, self.clock.now)
        held = NOT_PASSING if call.counted is None else call.counted.period
        if expected is None:
            with pytest.raises(CircuitOpenError):
                self.breaker.admit(self.clock.now, held)
        else:
            call.running = (self.breaker.admit(self.clock.now, held), expected)

    @rule()
    def a_call_begins(self) -> None:
        call = Call()
        self.attempt(call)
        if call.running:
            self.calls.append(call)

    @precondition(lambda self: any(call.running is None for call in self.calls))
    @rule(which=st.integers(0, 100))
    def a_call_tries_again(self, which: int) -> None:
        waiting = [call for call in self.calls if call.running is None]
        self.attempt(waiting[which % len(waiting)])

    @precondition(lambda self: any(call.running for call in self.calls))
    @rule(
        which=st.integers(0, 100),
        result=st.sampled_from(["success", "failure", "failure", "failure", "nothing"]),
        slow=st.booleans(),
    )
    def an_attempt_ends(self, which: int, result: str, slow: bool) -> None:
        running = [call for call in self.calls if call.running]
        call = running[which % len(running)]
        assert call.running is not None
        (period, expected), call.running = call.running, None
        if result == "nothing":
            self.breaker.release(period, call.counted)
        else:
            error = ConnectionError() if result == "failure" else None
            call.counted = self.breaker.record(period, self.clock.now, error, 3.0 if slow else 1.0, call.counted)
        self.model.end(call, expected, self.clock.now, result, slow)
        if result == "success":
            self.calls.remove(call)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 5.0, 17.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(action=st.sampled_from(["force_open", "force_closed", "reset", "reset"]))
    def operator_acts(self, action: str) -> None:
        getattr(self.breaker, action)()
        self.model.enter({"reset": "closed"}.get(action, action.replace("force", "forced")), self.clock.now)

    @invariant()
    def both_are_in_the_same_state(self) -> None:
        if hasattr(self, "model"):
            shown = self.model.state
            if shown == "open" and self.clock.now >= self.model.until:
                shown = "half_open"  # the next call is a probe
            assert self.breaker.state == shown

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestBreakerAndModel = BreakerAndModel.TestCase
TestBreakerAndModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


# Through bound functions


def test_it_opens_after_failures_in_a_row_probes_after_a_while_and_closes(bind: Any, script: Any) -> None:
    function = script(*[ConnectionError()] * 3, 1, *[ConnectionError()] * 5, 2)
    steady(bind.clock)
    call = bind(Policy(circuit_breaker={"consecutive_failures": 5, "open_for": 10}), function)
    outcomes = []
    for _ in range(9):
        try:
            outcomes.append(call())
        except ConnectionError:
            outcomes.append("failed")
    assert outcomes == ["failed"] * 3 + [1] + ["failed"] * 5  # the success began the count anew
    with pytest.raises(CircuitOpenError, match="open for another 10s; it opened after ConnectionError") as caught:
        call()
    assert caught.value.retry_in == 10
    assert len(function.calls) == 9
    bind.clock.advance(10)
    assert call() == 2
    assert bind.bound.binding.circuit_breaker.state == "closed"


def test_each_failed_probe_opens_it_for_twice_as_long_up_to_a_maximum_until_it_closes(bind: Any, script: Any) -> None:
    steady(bind.clock)
    down = ConnectionError()
    breaker = {"consecutive_failures": 1, "open_for": 10, "open_for_max": 50}
    call = bind(Policy(circuit_breaker=breaker), script(*[down] * 5, 1, *[down] * 2))
    for seconds in (10, 20, 40, 50, 50, None, 10, 20):
        if seconds is None:
            assert call() == 1
            continue
        with pytest.raises(ConnectionError):
            call()
        with pytest.raises(CircuitOpenError) as caught:
            call()
        assert caught.value.retry_in == seconds
        bind.clock.advance(seconds)


def test_it_stays_open_for_ten_times_open_for_at_most_by_default(bind: Any, script: Any) -> None:
    steady(bind.clock)
    call = bind(Policy(circuit_breaker={"consecutive_failures": 1, "open_for": 10}), script(ConnectionError()))
    waits = []
    for _ in range(6):
        with pytest.raises(ConnectionError):
            call()
        with pytest.raises(CircuitOpenError) as caught:
            call()
        waits.append(caught.value.retry_in)
        bind.clock.advance(waits[-1])
    assert waits == [10, 20, 40, 80, 100, 100]


def test_processes_that_open_it_together_do_not_probe_together() -> None:
    waits = []
    for seed in range(200):
        clock = VirtualClock(seed)
        breaker = CircuitBreakerExecutor(CircuitBreakerPolicy(consecutive_failures=1, open_for=100), clock, "test")
        breaker.record(breaker.admit(clock.now), clock.now, ConnectionError())
        with pytest.raises(CircuitOpenError) as caught:
            breaker.admit(clock.now)
        waits.append(caught.value.retry_in or 0)
    assert 90 <= min(waits) < 92
    assert 108 < max(waits) <= 110


def test_half_open_may_take_several_probes_of_which_some_may_fail(bind: Any, script: Any) -> None:
    steady(bind.clock)
    down = ConnectionError()
    breaker = {"consecutive_failures": 1, "open_for": 10, "half_open_calls": 10, "half_open_rate": "50%"}
    call = bind(Policy(circuit_breaker=breaker), script(down, *[down] * 5, 1, down, *[down, 1] * 5))
    circuit = bind.bound.binding.circuit_breaker

    def probe(count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(ConnectionError):
                call()

    probe(1)
    bind.clock.advance(10)
    probe(6)
    assert circuit.state == "half_open"  # five of ten may fail
    probe(1)
    assert circuit.state == "open"
    bind.clock.advance(20)
    probe(9)
    assert circuit.state == "half_open"
    probe(1)
    assert circuit.state == "closed"


def test_ignored_errors_count_neither_way(bind: Any, script: Any) -> None:
    function = script(ConnectionError(), KeyError(), ConnectionError(), 1)
    call = bind(Policy(circuit_breaker={"consecutive_failures": 2, "ignore": LookupError}), function)
    for error in (ConnectionError, KeyError, ConnectionError, CircuitOpenError):
        with pytest.raises(error):
            call()


def test_attempts_that_inner_layers_reject_do_not_count(bind: Any) -> None:
    call = bind(Policy(circuit_breaker=1, rate_limit={"rate": 0.1, "max_wait": 0}), lambda: 1)
    assert call() == 1
    for _ in range(5):
        with pytest.raises(Exception, match="max_wait is 0"):
            call()
    assert bind.bound.binding.circuit_breaker.state == "closed"


def test_a_full_bulkhead_does_not_count() -> None:
    clock = VirtualClock()

    async def function() -> None:
        await asyncio.sleep(1)

    bound = Policy(circuit_breaker=1, bulkhead=1).apply(function, clock=clock)

    async def main() -> None:
        results = await asyncio.gather(*(bound() for _ in range(4)), return_exceptions=True)
        assert [type(each) for each in results] == [type(None), *[BulkheadFullError] * 3]

    clock.run(main())
    assert bound.binding.circuit_breaker is not None
    assert bound.binding.circuit_breaker.state == "closed"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_interrupted_probe_lets_another_one_through(bind: Any, script: Any, error: BaseException) -> None:
    steady(bind.clock)
    call = bind(Policy(circuit_breaker={"consecutive_failures": 1, "open_for": 5}), script(ConnectionError(), error, 7))
    with pytest.raises(ConnectionError):
        call()
    bind.clock.advance(5)
    with pytest.raises(type(error)):
        call()
    assert call() == 7


def test_a_slow_call_is_one_of_the_function_not_of_waiting_for_a_permit(bind: Any) -> None:
    policy = Policy(circuit_breaker={"slow_call": 1, "min_calls": 2, "window": 4}, rate_limit=0.2)
    call = bind(policy, lambda: 1)
    for _ in range(6):
        call()  # each waits 5 s for its permit
    assert bind.bound.binding.circuit_breaker.state == "closed"


def test_slow_calls_open_it(bind: Any) -> None:
    call = bind(Policy(circuit_breaker={"slow_call": 1, "min_calls": 2, "window": 4}), lambda: bind.clock.advance(2))
    call()
    call()
    with pytest.raises(CircuitOpenError, match="it opened after a call took 2s"):
        call()


@pytest.mark.parametrize("probes", [1, 3])
def test_under_threads_exactly_as_many_probes_get_through_as_may(probes: int) -> None:
    clock = steady(VirtualClock())
    policy = CircuitBreakerPolicy(consecutive_failures=1, half_open_calls=probes, open_for=1)
    breaker = CircuitBreakerExecutor(policy, clock, "test")
    breaker.record(breaker.admit(clock.now), clock.now, ConnectionError())
    clock.advance(1)
    admitted: list[int] = []
    start = threading.Barrier(8)

    def hammer() -> None:
        start.wait()
        for _ in range(200):
            with contextlib.suppress(CircuitOpenError):
                admitted.append(breaker.admit(clock.now))

    run_threads(hammer)
    assert len(admitted) == probes


def test_under_threads_every_failure_counts() -> None:
    clock = VirtualClock()
    policy = CircuitBreakerPolicy(failure_rate=1.0, window=100_000, min_calls=100_000)
    breaker = CircuitBreakerExecutor(policy, clock, "test")

    def hammer() -> None:
        for _ in range(500):
            breaker.record(breaker.admit(clock.now), clock.now, ConnectionError())

    run_threads(hammer)
    assert breaker.change(lambda circuit: circuit.window.counts(clock.now).failures) == 4000


def run_threads(target: Any, count: int = 8) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=target) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
