"""The circuit breaker against a plain model, through bound functions, and under threads."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from opero import BulkheadFullError, CircuitBreakerPolicy, CircuitOpenError, Policy
from opero.executors.circuit_breaker import CircuitBreakerExecutor
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
    ),
    st.builds(
        CircuitBreakerPolicy,
        slow_call=st.just(2),
        slow_rate=st.sampled_from([0.5, 1.0]),
        window=st.just(4),
        min_calls=st.integers(1, 4),
        open_for=st.just(3),
    ),
)


class Model:
    """The breaker as its documentation describes it, as simple as can be."""

    def __init__(self, policy: CircuitBreakerPolicy) -> None:
        self.policy = policy
        self.state = "closed"
        self.since = 0.0
        self.period = 0
        self.enter("closed", 0.0)

    def enter(self, state: str, now: float) -> None:
        self.state, self.since = state, now
        self.period += 1
        self.streak = self.probes = self.passed = 0
        if state == "closed":
            self.window: deque[tuple[bool, bool]] = deque(maxlen=int(self.policy.window))

    def admit(self, now: float) -> int | None:
        if self.state == "open" and now >= self.since + self.policy.open_for:
            self.enter("half_open", now)
        if self.state == "half_open":
            if self.probes >= self.policy.half_open_calls and now >= self.since + self.policy.open_for:
                self.enter("half_open", now)
            if self.probes >= self.policy.half_open_calls:
                return None
            self.probes += 1
            return self.period
        return self.period if self.state in ("closed", "forced_closed") else None

    def end(self, period: int, now: float, result: str, slow: bool) -> None:
        if period != self.period:
            return
        slow = slow and self.policy.slow_call is not None
        if result == "nothing":
            self.probes -= self.state == "half_open"
        elif self.state == "half_open":
            if result == "failure" or slow:
                self.enter("open", now)
            else:
                self.passed += 1
                if self.passed == self.policy.half_open_calls:
                    self.enter("closed", now)
        elif self.state == "closed":
            self.streak = self.streak + 1 if result == "failure" else 0
            self.window.append((result == "failure", slow))
            if self.must_open():
                self.enter("open", now)

    def must_open(self) -> bool:
        policy, calls = self.policy, len(self.window)
        if policy.consecutive_failures and self.streak >= policy.consecutive_failures:
            return True
        if calls < policy.least_calls:
            return False
        if policy.failure_rate and sum(failed for failed, _ in self.window) >= policy.failure_rate * calls:
            return True
        return policy.slow_call is not None and sum(slow for _, slow in self.window) >= (policy.slow_rate or 1) * calls


class BreakerAndModel(RuleBasedStateMachine):
    """Calls begin and end in any order while time passes; after each step both agree."""

    @initialize(policy=POLICIES)
    def begin(self, policy: CircuitBreakerPolicy) -> None:
        self.clock = VirtualClock()
        self.clock.now = 0.0
        self.breaker = CircuitBreakerExecutor(policy, self.clock, "test")
        self.model = Model(policy)
        self.running: list[tuple[int, int]] = []

    @rule()
    def call_begins(self) -> None:
        expected = self.model.admit(self.clock.now)
        if expected is None:
            with pytest.raises(CircuitOpenError):
                self.breaker.admit(self.clock.now)
        else:
            self.running.append((self.breaker.admit(self.clock.now), expected))

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0, 100),
        result=st.sampled_from(["success", "failure", "failure", "nothing"]),
        slow=st.booleans(),
    )
    def call_ends(self, which: int, result: str, slow: bool) -> None:
        period, expected = self.running.pop(which % len(self.running))
        if result == "nothing":
            self.breaker.release(period)
        else:
            error = ConnectionError() if result == "failure" else None
            self.breaker.record(period, self.clock.now, error, 3.0 if slow else 1.0)
        self.model.end(expected, self.clock.now, result, slow)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 5.0]))
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
            if shown == "open" and self.clock.now >= self.model.since + self.model.policy.open_for:
                shown = "half_open"  # the next call is a probe
            assert self.breaker.state == shown


TestBreakerAndModel = BreakerAndModel.TestCase
TestBreakerAndModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# Through bound functions


def test_it_opens_after_failures_in_a_row_probes_after_a_while_and_closes(bind: Any, script: Any) -> None:
    function = script(*[ConnectionError()] * 3, 1, *[ConnectionError()] * 5, 2)
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


def test_a_failed_probe_opens_it_for_as_long_again(bind: Any, script: Any) -> None:
    call = bind(Policy(circuit_breaker={"consecutive_failures": 1, "open_for": 10}), script(ConnectionError()))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            call()
        with pytest.raises(CircuitOpenError):
            call()
        bind.clock.advance(10)


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
    clock = VirtualClock()
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
