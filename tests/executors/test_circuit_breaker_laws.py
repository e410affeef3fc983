"""The laws of the circuit breaker as callers see them: what gets through, what opens it, what does not count."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from executors.steady import steady
from opero import CircuitBreakerPolicy, CircuitOpenError, Policy
from opero.executors.circuit_breaker import CircuitBreakerExecutor
from opero.testing import VirtualClock


def breaker(clock: VirtualClock, **options: Any) -> CircuitBreakerExecutor:
    return CircuitBreakerExecutor(CircuitBreakerPolicy(**options), clock, "test")


class ProbesOnly(RuleBasedStateMachine):
    """A half-open breaker, checked by what is promised of its probes, without a model."""

    @initialize(probes=st.integers(1, 4), open_for=st.integers(2, 6))
    def begin(self, probes: int, open_for: int) -> None:
        self.clock = steady(VirtualClock())
        self.probes, self.open_for = probes, open_for
        self.breaker = breaker(
            self.clock, consecutive_failures=1, half_open_calls=probes, open_for=open_for, open_for_max=open_for
        )
        self.late = [self.breaker.admit(self.clock.now) for _ in range(3)]  # begun before it opened
        self.running: list[tuple[int, float]] = []
        self.open_again()

    def open_again(self) -> None:
        """Fail, so that it is open, and wait till it probes."""
        if self.breaker.state == "closed":
            self.breaker.record(self.breaker.admit(self.clock.now), self.clock.now, ConnectionError())
        assert self.breaker.state == "open"
        self.late += [period for period, _ in self.running]
        self.running, self.passed, self.written_off = [], 0, False
        for _ in range(self.open_for * 2):
            with pytest.raises(CircuitOpenError) as caught:
                self.breaker.admit(self.clock.now)
            assert caught.value.retry_in is not None
            assert caught.value.retry_in <= self.open_for
            self.clock.advance(0.5)
        self.since = self.clock.now

    @rule()
    def a_probe_begins(self) -> None:
        full = len(self.running) + self.passed >= self.probes
        if full and self.clock.now - self.since >= self.open_for:  # they take too long: they are written off
            self.late += [period for period, _ in self.running]
            self.running, self.passed, self.since, full = [], 0, self.clock.now, False
        if not self.running and not self.passed and not full:
            self.since = self.clock.now if self.breaker.home.values().state == "open" else self.since
        if full:
            with pytest.raises(CircuitOpenError, match="its probes are under way"):
                self.breaker.admit(self.clock.now)
        else:
            self.running.append((self.breaker.admit(self.clock.now), self.clock.now))
        assert len(self.running) + self.passed <= self.probes

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), end=st.sampled_from(["passes", "passes", "fails", "is cancelled"]))
    def a_probe(self, which: int, end: str) -> None:
        period, _ = self.running.pop(which % len(self.running))
        if end == "is cancelled":
            self.breaker.release(period)
            return
        self.breaker.record(period, self.clock.now, ConnectionError() if end == "fails" else None)
        self.passed += end == "passes"
        if end == "fails" or self.passed == self.probes:
            assert self.breaker.state == ("open" if end == "fails" else "closed")
            self.open_again()

    @precondition(lambda self: self.late)
    @rule(failed=st.booleans(), cancelled=st.booleans())
    def a_late_result_comes_in(self, failed: bool, cancelled: bool) -> None:
        circuit = self.breaker.home.values()
        before = (self.breaker.state, circuit.probes_begun, circuit.probes_passed)
        if cancelled:
            self.breaker.release(self.late.pop())
        else:
            self.breaker.record(self.late.pop(), self.clock.now, ConnectionError() if failed else None)
        assert (self.breaker.state, circuit.probes_begun, circuit.probes_passed) == before

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def it_goes_on_probing(self) -> None:
        assert not hasattr(self, "running") or self.breaker.state == "half_open"


TestProbesOnly = ProbesOnly.TestCase
TestProbesOnly.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("sfl")), min_size=1, max_size=60),
    rate=st.sampled_from([0.2, 0.5, 1.0]),
    slow_rate=st.sampled_from([0.3, 1.0]),
    least=st.integers(1, 8),
)
def test_over_a_time_window_it_opens_when_a_rate_is_reached_and_the_window_holds_enough(
    steps: list[tuple[int, str]], rate: float, slow_rate: float, least: int
) -> None:
    clock = VirtualClock()
    clock.now = 0.0
    policy: Any = {"failure_rate": rate, "slow_call": 5, "slow_rate": slow_rate, "window": "64s", "min_calls": least}
    tested = breaker(clock, **policy)
    tested.home.values().window._width = 6.25  # type: ignore[union-attr]  # exact in binary, so that the tenths' borders are
    happened: list[tuple[float, str]] = []
    for step, result in steps:
        clock.advance(step)
        happened.append((clock.now, result))
        tested.record(
            tested.admit(clock.now),
            clock.now,
            ConnectionError() if result == "f" else None,
            9.0 if result == "l" else 1.0,
        )
        held = [each for moment, each in happened if moment // 6.25 > clock.now // 6.25 - 10]
        reached = held.count("f") / len(held) >= rate or held.count("l") / len(held) >= slow_rate
        assert (tested.state == "open") is (len(held) >= least and reached)
        if tested.state == "open":
            return


@given(st.data())
def test_a_rate_is_reached_by_exactly_that_share_of_the_calls(data: Any) -> None:
    calls = data.draw(st.integers(2, 200))
    share = data.draw(st.integers(1, calls))
    by_failures = data.draw(st.booleans())
    rate: Any = {"failure_rate": share / calls} if by_failures else {"slow_call": 1, "slow_rate": share / calls}
    clock = VirtualClock()
    tested = breaker(clock, window=calls, min_calls=calls, **rate)
    for number in range(calls):
        assert tested.state == "closed"
        counted = number < share
        error = ConnectionError() if counted and by_failures else None
        tested.record(tested.admit(clock.now), clock.now, error, 2.0 if counted and not by_failures else 0.0)
    assert tested.state == "open"


def test_seven_failures_of_a_hundred_are_seven_percent() -> None:
    clock = VirtualClock()
    tested = breaker(clock, failure_rate=0.07, window=100, min_calls=100)
    for number in range(100):
        tested.record(tested.admit(clock.now), clock.now, ConnectionError() if number < 7 else None)
    assert tested.state == "open"


# What it does not disturb


def test_a_log_handler_may_ask_the_breaker_for_its_state() -> None:
    clock = steady(VirtualClock())
    tested = breaker(clock, consecutive_failures=1, open_for=5)
    seen: list[tuple[str, str]] = []

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), tested.state))

    def walk_through_all_states() -> None:
        tested.record(tested.admit(clock.now), clock.now, ConnectionError("down"))
        clock.advance(5)
        tested.record(tested.admit(clock.now), clock.now, None)
        tested.force_open()
        tested.force_closed()
        tested.reset()

    handler = Asking()
    logger = logging.getLogger("opero")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        thread = threading.Thread(target=walk_through_all_states, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "the handler waits for the lock that its caller holds"
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert seen == [
        ("test: circuit open after ConnectionError: down", "open"),
        ("test: circuit half open", "half_open"),
        ("test: circuit closed", "closed"),
        ("test: circuit forced open", "forced_open"),
        ("test: circuit forced closed", "forced_closed"),
        ("test: circuit closed", "closed"),
    ]


def test_an_exception_that_cannot_be_shown_counts_and_comes_out_as_it_is(bind: Any) -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise KeyError("in __str__")

    def function() -> None:
        raise UnspeakableError

    call = bind(Policy(circuit_breaker=1), function)
    with pytest.raises(UnspeakableError):
        call()
    with pytest.raises(CircuitOpenError, match="it opened after UnspeakableError"):
        call()
