"""What a circuit breaker keeps when its policy is replaced: row by row of `opero.executors.state`, and its laws."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.steady import steady
from opero import AllFailedError, CircuitBreakerPolicy, CircuitOpenError, Policy
from opero.executors.circuit_breaker import CircuitBreakerExecutor
from opero.executors.state.windows import TimeWindow
from opero.testing import VirtualClock

DOWN = ConnectionError("down")


class Service:
    """A bound function that does what it is told, and its circuit breaker."""

    def __init__(self, bind: Any, **breaker: Any) -> None:
        self.clock = steady(bind.clock)
        self.call = bind(self.policy(**breaker), lambda do=None: do() if callable(do) else do)
        self.binding = bind.bound.binding

    @staticmethod
    def policy(**breaker: Any) -> Policy:
        return Policy(circuit_breaker=CircuitBreakerPolicy(**breaker))

    def reload(self, **breaker: Any) -> None:
        self.binding.swap(self.policy(**breaker))

    def fail(self, times: int = 1, error: Exception = DOWN) -> None:
        def fails() -> None:
            raise error

        for _ in range(times):
            with pytest.raises(type(error)):
                self.call(fails)

    def slow(self, seconds: float) -> None:
        self.call(lambda: self.clock.advance(seconds))

    def is_rejected(self) -> bool:
        try:
            self.call()
        except CircuitOpenError:
            return True
        return False

    @property
    def breaker(self) -> CircuitBreakerExecutor:
        found: CircuitBreakerExecutor = self.binding.circuit_breaker
        return found

    @property
    def state(self) -> str:
        return self.breaker.state


CHANGES: list[dict[str, Any]] = [
    {"consecutive_failures": 9},
    {"failure_rate": 0.5},
    {"failure_rate": 0.5, "window": "30s", "min_calls": 3},
    {"slow_call": 1, "slow_rate": 0.2},
    {"consecutive_failures": 2, "half_open_calls": 4},
    {"consecutive_failures": 2, "half_open_calls": 4, "half_open_rate": 0.5},
    {"consecutive_failures": 2, "open_for": 90},
    {"open_for_max": "2m"},
    {"ignore": ConnectionError},
    {"scope": "function"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_open_and_forced_circuits_stay_so_whatever_changes(bind: Any, change: dict[str, Any]) -> None:
    service = Service(bind, consecutive_failures=1)
    service.fail()
    service.reload(**change)
    assert (service.state, service.is_rejected()) == ("open", True)
    service.clock.advance(change.get("open_for", 60.0))
    assert service.state == "half_open"
    service.breaker.force_open()
    service.reload(consecutive_failures=1)
    assert (service.state, service.is_rejected()) == ("forced_open", True)
    service.breaker.force_closed()
    service.reload(**change)
    service.fail(12)
    assert service.state == "forced_closed"


def test_an_open_circuit_stays_open_for_the_new_time_from_when_it_opened(bind: Any) -> None:
    service = Service(bind, consecutive_failures=1, open_for=60)
    service.fail()
    service.clock.advance(50)
    service.reload(consecutive_failures=1, open_for=100)
    service.clock.advance(49)
    assert service.is_rejected()
    service.reload(consecutive_failures=1, open_for=99)
    assert not service.is_rejected()
    assert service.state == "closed"


def test_how_often_its_probes_have_failed_is_kept_and_the_new_maximum_holds_at_once(bind: Any) -> None:
    service = Service(bind, consecutive_failures=1, open_for=10)
    for seconds in (10, 20):
        service.fail()
        service.clock.advance(seconds)
    service.fail()
    service.reload(consecutive_failures=1, open_for=20, open_for_max=50)
    service.clock.advance(49)
    assert service.is_rejected()
    service.reload(consecutive_failures=1, open_for=20, open_for_max=49)
    assert not service.is_rejected()


def test_jitter_is_kept() -> None:
    clock = VirtualClock()
    first, second = (
        CircuitBreakerExecutor(CircuitBreakerPolicy(consecutive_failures=1, open_for=each), clock, "f")
        for each in (10, 1000)
    )
    first.record(first.admit(clock.now), clock.now, DOWN)
    with pytest.raises(CircuitOpenError) as before:
        first.admit(clock.now)
    second.migrate_from(first)
    with pytest.raises(CircuitOpenError) as after:
        second.admit(clock.now)
    assert before.value.retry_in != 10
    assert after.value.retry_in == pytest.approx(100 * (before.value.retry_in or 0))


def test_probes_that_have_failed_count_under_the_new_share(bind: Any) -> None:
    probes = {"consecutive_failures": 1, "open_for": 10, "half_open_calls": 4}
    service = Service(bind, **probes, half_open_rate=0.5)
    service.fail()
    service.clock.advance(10)
    service.fail()
    service.reload(**probes, half_open_rate=0.25)
    assert service.state == "half_open"
    service.fail()
    assert service.state == "open"


def test_a_call_under_way_keeps_its_place_in_what_was_counted(bind: Any) -> None:
    def policy(failures: int) -> Policy:
        breaker = CircuitBreakerPolicy(consecutive_failures=failures, failure_rate=1, window=9, min_calls=9)
        return Policy(circuit_breaker=breaker, retry={"retries": 5, "min_delay": 0, "max_delay": 0})

    def fails() -> None:
        bind.bound.binding.swap(policy(next(numbers)))
        raise DOWN

    numbers = iter(range(2, 100))
    call = bind(policy(2), fails)
    with pytest.raises(AllFailedError):
        call()
    breaker = bind.bound.binding.circuit_breaker
    assert breaker.change(lambda circuit: (circuit.consecutive, circuit.window.counts(0.0).calls)) == (1, 1)


def test_failures_in_a_row_are_kept_and_judged_by_the_new_number_at_the_next_result(bind: Any) -> None:
    service = Service(bind, consecutive_failures=5)
    service.fail(3)
    service.reload(consecutive_failures=2)
    assert service.state == "closed"
    service.fail()
    assert service.state == "open"
    service.breaker.reset()
    service.reload(consecutive_failures=5)
    service.fail(3)
    service.reload(consecutive_failures=4)
    service.call()
    service.fail(3)
    assert service.state == "closed"
    service.fail()
    assert service.state == "open"


def test_a_success_after_the_reload_forgets_the_failures_before_it(bind: Any) -> None:
    service = Service(bind, consecutive_failures=3)
    service.fail(2)
    service.reload(consecutive_failures=3, open_for=5)
    service.call()
    service.fail(2)
    assert service.state == "closed"


@pytest.mark.parametrize(
    ("field", "before", "after"), [("failure_rate", 0.9, 0.5), ("min_calls", 10, 4), ("window", 100, 50)]
)
def test_what_the_window_counted_is_judged_by_the_new_rate_or_least_number_of_calls(
    bind: Any, field: str, before: Any, after: Any
) -> None:
    rest = {"failure_rate": 0.5, "min_calls": 4, field: before}
    service = Service(bind, **rest)
    if field == "window":
        service.reload(**rest, slow_call=5)
    service.fail(2)
    service.call()
    assert service.state == "closed"
    service.reload(**{**rest, field: after})
    assert service.state == "closed"
    service.fail()
    assert service.state == "open"


def test_a_smaller_window_of_calls_holds_the_latest_that_fit_and_a_larger_one_all(bind: Any) -> None:
    service = Service(bind, failure_rate=0.6, window=6, min_calls=3)
    for _ in range(2):
        service.call(), service.call(), service.fail()
    service.call(), service.fail()
    service.reload(failure_rate=0.6, window=3, min_calls=3)
    counts = service.breaker.home.values().window.counts(service.clock.now)
    assert (counts.calls, counts.failures) == (3, 2)
    service.reload(failure_rate=0.7, window=5, min_calls=3)
    service.fail()
    counts = service.breaker.home.values().window.counts(service.clock.now)
    assert (counts.calls, counts.failures) == (4, 3) or service.state == "open"


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30),
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=10),
)
def test_a_window_of_calls_that_changes_its_length_holds_the_latest_calls_of_them(
    calls: list[tuple[bool, bool]], lengths: list[int], more: list[tuple[bool, bool]]
) -> None:
    from opero.executors.state.windows import CountWindow

    window: Any = CountWindow(8)
    held = list(calls)[-8:]
    for call in calls:
        window.add(0.0, *call)
    for length in lengths:
        window = window.resized(length)
        held = held[-length:]
        for call in more:
            window.add(0.0, *call)
            held = [*held, call][-length:]
        counts = window.counts(0.0)
        assert counts.calls == len(held)
        assert counts.failures == sum(failed for failed, _ in held)
        assert counts.slow == sum(slow for _, slow in held)


@given(
    st.lists(st.tuples(st.floats(0, 8), st.booleans()), max_size=40),
    st.lists(st.sampled_from([1.0, 3.0, 10.0, 60.0]), min_size=1, max_size=8),
)
def test_a_window_of_time_that_changes_its_length_holds_the_calls_within_it(
    calls: list[tuple[float, bool]], lengths: list[float]
) -> None:
    now, ended = 1000.0, []
    for passed, _ in calls:
        now += passed
        ended.append(now)
    first = lengths[0]
    window: Any = TimeWindow(first)
    for moment, (_, failed) in zip(ended, calls, strict=True):
        window.add(moment, failed, slow=False)
    shortest, widest = first, first
    for length in lengths:
        window = window.resized(length)
        shortest, widest = min(shortest, length), max(widest, length)
        counts = window.counts(now)
        # What is surely within every one of them is there; what is surely outside of this one is not.
        least = sum(moment > now - shortest * 0.9 for moment in ended)
        most = sum(moment > now - length - widest * 0.1 for moment in ended)
        assert least <= counts.calls <= most
        assert 0 <= counts.failures <= counts.calls


def test_from_calls_to_time_and_from_no_rate_to_a_rate_the_window_starts_anew(bind: Any) -> None:
    service = Service(bind, failure_rate=0.5, window=10, min_calls=4)
    for changed in (
        {"failure_rate": 0.5, "window": "10s", "min_calls": 4},
        {"consecutive_failures": 100},
        {"failure_rate": 0.5, "window": 10, "min_calls": 4},
    ):
        service.fail(3)
        service.reload(**changed)
        service.fail()
        assert service.state == "closed"
        service.breaker.reset()


def test_calls_that_were_counted_stay_slow_or_not_and_the_next_are_judged_anew(bind: Any) -> None:
    service = Service(bind, slow_call=2, slow_rate=1, min_calls=4)
    for _ in range(2):
        service.slow(3)
    service.reload(slow_call=5, slow_rate=0.75, min_calls=4)
    service.slow(3)
    service.reload(slow_call=1, slow_rate=0.75, min_calls=4)
    service.slow(1.5)
    assert service.state == "open"


def test_an_ignored_exception_is_one_from_the_reload_on(bind: Any) -> None:
    service = Service(bind, consecutive_failures=3)
    service.fail(2, ValueError())
    service.reload(consecutive_failures=3, ignore=ValueError)
    service.fail(5, ValueError())
    assert service.state == "closed"
    service.fail()
    assert service.state == "open"


def test_probes_that_have_begun_or_passed_count_under_the_new_number(bind: Any) -> None:
    service = Service(bind, consecutive_failures=1, open_for=1, half_open_calls=2)
    service.fail()
    service.clock.advance(1)
    service.call()
    assert service.state == "half_open"
    service.reload(consecutive_failures=1, open_for=1, half_open_calls=3)
    service.call()
    assert service.state == "half_open"
    service.call()
    assert service.state == "closed"


def test_where_enough_probes_have_passed_for_the_new_number_the_next_call_closes_the_circuit(bind: Any) -> None:
    service = Service(bind, consecutive_failures=2, open_for=10, half_open_calls=3)
    service.fail(2)
    service.clock.advance(10)
    service.call()
    service.call()
    service.reload(consecutive_failures=2, open_for=10, half_open_calls=1)
    service.fail()
    assert service.state == "closed"  # it was no probe any more, and its failure is the first
    service.fail()
    assert service.state == "open"


def test_a_running_probe_counts_and_its_result_closes_the_circuit(bind: Any) -> None:
    service = Service(bind, consecutive_failures=1, open_for=1)
    service.fail()
    service.clock.advance(1)
    refused = []

    def probe() -> None:
        service.reload(consecutive_failures=1, open_for=10)
        try:
            service.breaker.admit(service.clock.now)
        except CircuitOpenError as error:
            refused.append(error)

    service.call(probe)
    assert len(refused) == 1
    assert service.state == "closed"


def test_a_call_under_way_counts_for_the_new_policy_and_is_judged_by_its_own(bind: Any) -> None:
    service = Service(bind, consecutive_failures=3, ignore=KeyError)
    service.fail(1)

    def reload_and_raise(error: Exception, **breaker: Any) -> Any:
        def function() -> None:
            service.reload(**breaker)
            raise error

        return function

    with pytest.raises(ConnectionError):
        service.call(reload_and_raise(DOWN, consecutive_failures=2, ignore=ValueError))
    assert service.state == "closed"  # its own policy opens after three
    with pytest.raises(ValueError, match="mine"):  # ignored by the one under which it began
        service.call(reload_and_raise(ValueError("mine"), consecutive_failures=3))
    assert service.state == "closed"
    service.fail()
    assert service.state == "open"


def test_a_call_from_before_the_circuit_opened_cannot_close_it_after_a_reload() -> None:
    clock = VirtualClock()
    first, second, third = (
        CircuitBreakerExecutor(CircuitBreakerPolicy(consecutive_failures=1, open_for=each), clock, "f")
        for each in (30, 60, 90)
    )
    began = first.admit(clock.now)
    second.migrate_from(first)
    second.record(second.admit(clock.now), clock.now, DOWN)
    third.migrate_from(second)
    first.record(began, clock.now, None)
    assert third.state == "open"


def test_old_and_new_executor_see_the_same_state() -> None:
    clock = VirtualClock()
    old = CircuitBreakerExecutor(CircuitBreakerPolicy(consecutive_failures=1), clock, "f")
    new = CircuitBreakerExecutor(CircuitBreakerPolicy(consecutive_failures=2), clock, "f")
    new.migrate_from(old)
    new.force_open()
    assert old.state == "forced_open"
    with pytest.raises(CircuitOpenError):
        old.admit(clock.now)
    old.reset()
    old.record(old.admit(clock.now), clock.now, DOWN)
    assert new.state == "open"


def test_calls_of_the_old_executor_fill_the_window_of_the_new_policy_too() -> None:
    clock = VirtualClock()
    old = CircuitBreakerExecutor(CircuitBreakerPolicy(consecutive_failures=100), clock, "f")
    new = CircuitBreakerExecutor(CircuitBreakerPolicy(failure_rate=0.5, min_calls=3), clock, "f")
    new.migrate_from(old)
    for breaker in (old, old, new):
        assert new.state == "closed"
        breaker.record(breaker.admit(clock.now), clock.now, DOWN)
    assert (new.state, old.state) == ("open", "open")


def test_successes_fill_the_window_from_the_reload_on(bind: Any) -> None:
    service = Service(bind, consecutive_failures=100)
    service.call()
    service.reload(failure_rate=0.5, min_calls=4)
    service.call(), service.call()
    service.fail()
    assert service.state == "closed"
    service.fail()
    assert service.state == "open"


def test_a_policy_that_is_removed_or_switched_off_loses_its_state(bind: Any) -> None:
    service = Service(bind, consecutive_failures=1)
    for without in (Policy(), Policy(circuit_breaker={"consecutive_failures": 1, "enabled": False})):
        service.fail()
        assert service.state == "open"
        service.binding.swap(without)
        service.call()
        service.reload(consecutive_failures=1)
        assert service.state == "closed"


def test_an_equal_policy_keeps_its_executor(bind: Any) -> None:
    service = Service(bind, consecutive_failures=3)
    before = service.breaker
    service.binding.swap(Policy(circuit_breaker=3, retry=0))
    assert service.breaker is before


def test_a_reload_that_fails_has_changed_nothing(bind: Any) -> None:
    from opero import ConfigError

    service = Service(bind, consecutive_failures=3)
    service.fail(2)
    before = service.breaker
    with pytest.raises(ConfigError):
        service.binding.swap(Policy(circuit_breaker=1, fallback={"arg": "no_such"}))
    service.binding.prepare(self_policy := Policy(circuit_breaker=1))
    assert self_policy != service.binding.policy
    assert (service.breaker, service.state) == (before, "closed")
    service.fail()
    assert service.state == "open"


def test_a_policy_that_was_prepared_before_another_reload_continues_with_the_state_of_that_one(bind: Any) -> None:
    service = Service(bind, consecutive_failures=3)
    again = service.binding.prepare(service.policy(consecutive_failures=3))  # holds the very executor of now
    other = service.binding.prepare(service.policy(consecutive_failures=2))
    service.reload(failure_rate=0.5)
    service.fail(1)
    service.binding.enforce(again)
    service.fail(1)
    service.binding.enforce(other)
    assert service.state == "closed"
    service.fail(1)
    assert service.state == "open"


def test_after_many_reloads_old_executors_are_gone_and_the_first_calls_still_count(bind: Any) -> None:
    service = Service(bind, consecutive_failures=1)
    gone: list[weakref.ref[Any]] = []

    def function() -> None:
        for number in range(2, 300):
            gone.append(weakref.ref(service.breaker))
            service.reload(consecutive_failures=number)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        service.call(function)
    assert service.state == "open"
    gc.collect()
    assert [each for each in gone if each() is not None] == []


FIELDS = st.fixed_dictionaries(
    {"open_for": st.sampled_from([5.0, 20.0, 80.0]), "half_open_calls": st.integers(1, 3)},
    optional={"ignore": st.sampled_from([(), (KeyError,)])},
)
JUDGED = st.one_of(
    st.fixed_dictionaries({"consecutive_failures": st.integers(1, 3)}),
    st.fixed_dictionaries(
        {
            "failure_rate": st.sampled_from([0.3, 1.0]),
            "window": st.sampled_from([4, 9, "10s", "40s"]),
            "min_calls": st.integers(1, 4),
        }
    ),
)
POLICIES = st.builds(lambda fields, judged: CircuitBreakerPolicy(**fields, **judged), FIELDS, JUDGED)
STEPS = st.lists(
    st.one_of(st.sampled_from(["ok", "fail", "fail"]), st.floats(0, 30), POLICIES), min_size=1, max_size=40
)


@given(STEPS)
def test_no_reload_closes_an_open_circuit_before_its_time(steps: list[Any]) -> None:
    clock = steady(VirtualClock())
    # Without doubling after failed probes, which another law is about.
    breaker = CircuitBreakerExecutor(CircuitBreakerPolicy(consecutive_failures=1, open_for_max="1m"), clock, "f")
    opened: float | None = None
    for step in steps:
        if isinstance(step, CircuitBreakerPolicy):
            step = step.replace(open_for_max=step.open_for)  # noqa: PLW2901  # as above
            old, breaker = breaker, CircuitBreakerExecutor(step, clock, "f")
            breaker.migrate_from(old)
        elif isinstance(step, float):
            clock.advance(step)
        else:
            is_open = opened is not None and clock.now < opened + breaker.policy.open_for
            assert (breaker.state == "open") is is_open
            try:
                period = breaker.admit(clock.now)
            except CircuitOpenError:
                assert is_open
            else:
                assert not is_open
                breaker.record(period, clock.now, DOWN if step == "fail" else None)
            if breaker.home.values().state != "open":
                opened = None
            elif not is_open:
                opened = clock.now


@given(STEPS, st.lists(st.integers(0, 40), max_size=10))
def test_reloads_that_change_no_decision_change_no_outcome(steps: list[Any], reloads: list[int]) -> None:
    clock = steady(VirtualClock())

    def make(policy: CircuitBreakerPolicy) -> CircuitBreakerExecutor:
        return CircuitBreakerExecutor(policy, clock, "f")

    one, other = make(CircuitBreakerPolicy(consecutive_failures=2)), make(CircuitBreakerPolicy(consecutive_failures=2))
    for number, step in enumerate(steps):
        if isinstance(step, CircuitBreakerPolicy):
            one, old = make(step), one
            one.migrate_from(old)
            other, old = make(step), other
            other.migrate_from(old)
        elif isinstance(step, float):
            clock.advance(step)
        else:
            if number in reloads:
                other, old = make(other.policy.replace(ignore=(LookupError, *other.policy.ignore))), other
                other.migrate_from(old)
            seen = []
            for breaker in (one, other):
                try:
                    breaker.record(breaker.admit(clock.now), clock.now, DOWN if step == "fail" else None)
                    seen.append(("let through", breaker.state))
                except CircuitOpenError as error:
                    seen.append((str(error), breaker.state))
            assert seen[0] == seen[1]


def test_under_threads_every_failure_counts_while_policies_are_replaced() -> None:
    bound = Policy(circuit_breaker=10**6, retry=0).apply(lambda: 1 / 0)
    before: Any = bound.binding.pipeline.executors["circuit_breaker"]  # type: ignore[attr-defined]
    stop = threading.Event()
    counts: list[int] = []

    def use() -> None:
        count = 0
        while not stop.is_set():
            with pytest.raises(ZeroDivisionError):
                bound()
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(300):
        bound.binding.swap(Policy(circuit_breaker={"consecutive_failures": 10**6 + number}))  # type: ignore[attr-defined]
    stop.set()
    for thread in threads:
        thread.join(30)
    assert before.change(lambda circuit: circuit.consecutive) == sum(counts)
    assert before.state == "closed"
