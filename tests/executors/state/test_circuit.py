"""The decisions about a circuit, as functions of the circuit, the policy and the moment."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.steady import Middle
from opero import CircuitBreakerPolicy
from opero.executors.state.circuit import (
    Circuit,
    Counted,
    Refusal,
    admit,
    apply_policy,
    enter,
    new_circuit,
    record,
    release,
    state_at,
)

NOW = 100.0
MIDDLE = Middle()


def policy(**fields: Any) -> CircuitBreakerPolicy:
    return CircuitBreakerPolicy(**{"open_for": 10, **fields})


def count(
    circuit: Circuit, under: CircuitBreakerPolicy, result: str, now: float = NOW, counted: Counted | None = None
) -> Counted | None:
    """The result of an attempt of a call: s(uccess), f(ailure), l(ate), b(oth)."""
    failed, slow = result in "fb", result in "lb"
    trouble = "ConnectionError: down" if failed else "a call took 2s" if slow else ""
    return record(circuit, under, now, MIDDLE, circuit.period, failed, slow, trouble, counted)


def fail(circuit: Circuit, under: CircuitBreakerPolicy) -> None:
    count(circuit, under, "f")


def succeed(circuit: Circuit, under: CircuitBreakerPolicy, now: float = NOW) -> None:
    count(circuit, under, "s", now)


def opened(under: CircuitBreakerPolicy) -> Circuit:
    circuit = new_circuit(under, NOW)
    enter(circuit, "open", NOW)
    return circuit


def test_a_new_circuit_is_closed_and_lets_calls_through_without_needing_their_successes() -> None:
    under = policy(consecutive_failures=5)
    circuit = new_circuit(under, NOW)
    assert (circuit.state, circuit.passing, circuit.needs_results) == ("closed", 0, False)
    assert admit(circuit, under, NOW) == 0
    assert new_circuit(policy(failure_rate=0.5), NOW).needs_results


def test_failures_in_a_row_open_it_and_a_success_between_them_starts_the_row_anew() -> None:
    under = policy(consecutive_failures=2)
    circuit = new_circuit(under, NOW)
    fail(circuit, under)
    assert circuit.needs_results
    succeed(circuit, under)
    fail(circuit, under)
    assert circuit.state == "closed"
    fail(circuit, under)
    assert (circuit.state, circuit.period, circuit.passing) == ("open", 1, -1)
    assert circuit.last_error == "ConnectionError: down"


def test_an_open_circuit_refuses_until_its_time_is_over_and_says_when() -> None:
    under = policy()
    circuit = opened(under)
    circuit.last_error = "TimeoutError"
    assert admit(circuit, under, NOW + 4) == Refusal("open", 6.0, "TimeoutError")
    assert (state_at(circuit, under, NOW + 9.9), state_at(circuit, under, NOW + 10)) == ("open", "half_open")
    assert circuit.state == "open"  # looking changes nothing
    assert admit(circuit, under, NOW + 10) == circuit.period
    assert circuit.state == "half_open"


def test_a_half_open_circuit_lets_as_many_probes_through_as_the_policy_says() -> None:
    under = policy(half_open_calls=2)
    circuit = opened(under)
    first = admit(circuit, under, NOW + 10)
    assert isinstance(first, int)
    assert admit(circuit, under, NOW + 11) == first
    assert admit(circuit, under, NOW + 12) == Refusal("half_open", 0.0, "")
    release(circuit, first)
    assert admit(circuit, under, NOW + 12) == first
    succeed(circuit, under, NOW + 13)
    assert circuit.state == "half_open"
    succeed(circuit, under, NOW + 13)
    assert circuit.state == "closed"


def test_probes_that_do_not_come_back_in_time_are_written_off() -> None:
    under = policy()
    circuit = opened(under)
    lost = admit(circuit, under, NOW + 10)
    assert admit(circuit, under, NOW + 20) == circuit.period
    assert circuit.period != lost


def test_a_failed_or_slow_probe_opens_it_again() -> None:
    under = policy(slow_call=1)
    for result, trouble in (("f", "ConnectionError: down"), ("l", "a call took 2s")):
        circuit = opened(under)
        admit(circuit, under, NOW + 10)
        count(circuit, under, result, NOW + 11)
        assert (circuit.state, circuit.since, circuit.last_error) == ("open", NOW + 11, trouble)
        assert isinstance(admit(circuit, under, NOW + 30), Refusal)
        assert isinstance(admit(circuit, under, NOW + 31), int)


def test_attempts_of_one_call_are_one_probe() -> None:
    under = policy(half_open_calls=3, half_open_rate=0.4)
    circuit = opened(under)
    period = admit(circuit, under, NOW + 10)
    assert isinstance(period, int)
    counted = count(circuit, under, "f")
    for _ in range(5):
        assert admit(circuit, under, NOW + 10, period) == period
        counted = count(circuit, under, "f", counted=counted)
    assert (circuit.state, circuit.probes_begun, circuit.probes_failed) == ("half_open", 1, 1)
    release(circuit, period, counted)  # the call has used its probe, and gives none back
    assert circuit.probes_begun == 1
    count(circuit, under, "s", counted=counted)
    assert (circuit.probes_failed, circuit.probes_passed) == (0, 1)
    admit(circuit, under, NOW + 10)
    count(circuit, under, "s")
    assert circuit.state == "closed"


def test_attempts_of_one_call_are_one_failure_in_a_row() -> None:
    under = policy(consecutive_failures=2)
    circuit = new_circuit(under, NOW)
    counted = None
    for _ in range(5):
        counted = count(circuit, under, "f", counted=counted)
    assert (circuit.state, circuit.consecutive) == ("closed", 1)
    succeed(circuit, under)  # of another call: a new row, in which the call is one failure again
    for _ in range(5):
        counted = count(circuit, under, "f", counted=counted)
    assert (circuit.state, circuit.consecutive) == ("closed", 1)
    fail(circuit, under)
    assert circuit.state == "open"


@pytest.mark.parametrize("window", [20, "20s"])
def test_a_call_has_one_place_in_the_window_which_its_latest_attempt_fills(window: int | str) -> None:
    under = policy(failure_rate=1, slow_call=1, window=window, min_calls=9)
    circuit = new_circuit(under, NOW)
    counted = None
    for result, failures, slow in (("f", 1, 0), ("b", 1, 1), ("f", 1, 0), ("s", 0, 0)):
        counted = count(circuit, under, result, counted=counted)
        succeed(circuit, under)
        counts = circuit.window.counts(NOW)
        assert (counts.failures, counts.slow) == (failures, slow)
    assert circuit.window.counts(NOW).calls == 5


def test_a_call_that_its_window_has_lost_counts_again() -> None:
    for window, now in ((2, NOW), ("20s", NOW + 20)):
        under = policy(failure_rate=1, window=window, min_calls=2)
        circuit = new_circuit(under, NOW)
        counted = count(circuit, under, "f")
        for _ in range(2):
            succeed(circuit, under)
        count(circuit, under, "f", now, counted)
        assert circuit.window.counts(now).failures == 1


def test_a_result_replaces_nothing_in_a_window_that_began_later() -> None:
    under = policy(failure_rate=1, window="20s", min_calls=9)
    circuit = new_circuit(under, NOW)
    counted = count(circuit, under, "f")
    apply_policy(circuit, policy(consecutive_failures=9))
    apply_policy(circuit, under)
    fail(circuit, under)
    count(circuit, under, "s", counted=counted)
    counts = circuit.window.counts(NOW)
    assert (counts.calls, counts.failures) == (2, 1)


def test_a_forced_circuit_stays_as_it_is_whatever_happens() -> None:
    under = policy(consecutive_failures=1)
    circuit = new_circuit(under, NOW)
    enter(circuit, "forced_open", NOW)
    assert admit(circuit, under, NOW + 1000) == Refusal("forced_open", None, "")
    enter(circuit, "forced_closed", NOW)
    fail(circuit, under)
    assert admit(circuit, under, NOW) == circuit.period
    assert (circuit.state, circuit.passing) == ("forced_closed", -1)


@pytest.mark.parametrize(
    ("fields", "results", "state"),
    [
        ({"failure_rate": 0.5, "min_calls": 4}, "sfsf", "open"),
        ({"failure_rate": 0.5, "min_calls": 5}, "sfsf", "closed"),
        ({"failure_rate": 0.51, "min_calls": 4}, "sfsf", "closed"),
        ({"slow_call": 1, "slow_rate": 0.25, "min_calls": 4}, "sssl", "open"),
        ({"slow_call": 1, "min_calls": 2}, "ll", "open"),
        ({"failure_rate": 0.07, "min_calls": 100}, "f" * 7 + "s" * 93, "open"),
    ],
)
def test_a_rate_opens_it_once_the_window_holds_enough(fields: dict[str, Any], results: str, state: str) -> None:
    under = policy(**fields)
    circuit = new_circuit(under, NOW)
    for result in results:
        count(circuit, under, result)
    assert circuit.state == state


def test_a_new_policy_keeps_what_its_window_holds() -> None:
    under = policy(failure_rate=0.9, window=6, min_calls=6)
    circuit = new_circuit(under, NOW)
    for result in "sff":
        count(circuit, under, result)
    apply_policy(circuit, policy(failure_rate=0.9, window=2))
    assert (circuit.window.counts(NOW).calls, circuit.window.counts(NOW).failures) == (2, 2)
    apply_policy(circuit, policy(consecutive_failures=9))
    assert (circuit.by_rate, circuit.window.counts(NOW).calls) == (False, 0)
    assert circuit.consecutive == 2


POLICIES = st.sampled_from(
    [
        policy(consecutive_failures=2),
        policy(consecutive_failures=1, half_open_calls=3),
        policy(failure_rate=0.5, window=5, min_calls=2),
        policy(failure_rate=0.5, window="20s", min_calls=2),
        policy(slow_call=1, window=4, min_calls=1, half_open_calls=2),
        policy(failure_rate=0.5, window=5, min_calls=2, half_open_calls=4, half_open_rate=0.5),
    ]
)
STEPS = st.lists(
    st.one_of(
        st.floats(0, 12),
        st.sampled_from(["admit", "admit", "release"]),
        st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)),
        POLICIES,
    ),
    max_size=50,
)


def run(circuit: Circuit, under: CircuitBreakerPolicy, steps: list[Any], check: Any = None) -> list[Any]:
    """What the decisions return; results are those of calls that were let through."""
    now, admitted, seen = NOW, [], []
    for step in steps:
        before = copy.deepcopy(circuit)
        if isinstance(step, CircuitBreakerPolicy):
            apply_policy(circuit, step)
            under = step
        elif isinstance(step, float):
            now += step
        elif step == "admit":
            seen.append(admit(circuit, under, now))
            if isinstance(seen[-1], int):
                admitted.append(seen[-1])
        elif step == "release":
            if admitted:
                release(circuit, admitted.pop())
        elif admitted:
            period = admitted.pop(-1 - step[2] % len(admitted))
            record(circuit, under, now, MIDDLE, period, step[0], step[1], "trouble" if any(step[:2]) else "")
            if period != before.period:
                assert pickle.dumps(circuit) == pickle.dumps(before)
        if check is not None:
            check(before, circuit, under, now)
    return seen


@given(POLICIES, STEPS)
def test_its_laws_hold_whatever_happens(under: CircuitBreakerPolicy, steps: list[Any]) -> None:
    def check(before: Circuit, after: Circuit, policy: CircuitBreakerPolicy, now: float) -> None:
        assert after.period >= before.period
        assert (after.period == before.period) or after.since == now
        assert 0 <= after.probes_passed <= 3
        if before.state == "open" and after.state != "open":
            assert now >= before.since + policy.open_for
        if after.state == "closed":
            assert after.passing == after.period
            assert policy.consecutive_failures is None or after.consecutive <= 3
        else:
            assert (after.passing, after.needs_results) == (-1, True)
        if after.state == "half_open":
            assert after.probes_begun >= after.probes_passed + after.probes_failed >= 0

    run(new_circuit(under, NOW), under, steps, check)


@given(POLICIES, STEPS)
def test_a_circuit_is_data_so_a_pickled_copy_goes_the_same_way(under: CircuitBreakerPolicy, steps: list[Any]) -> None:
    half = len(steps) // 2
    circuit = new_circuit(under, NOW)
    run(circuit, under, steps[:half])
    copied = pickle.loads(pickle.dumps(circuit))
    assert run(circuit, under, steps[half:]) == run(copied, under, steps[half:])


@given(POLICIES, st.integers(0, 40))
def test_successes_alone_never_open_it(under: CircuitBreakerPolicy, count: int) -> None:
    circuit = new_circuit(under, NOW)
    for number in range(count):
        succeed(circuit, under, NOW + number)
    assert (circuit.state, circuit.period) == ("closed", 0)
