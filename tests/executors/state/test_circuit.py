"""The decisions about a circuit, as functions of the circuit, the policy and the moment."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import CircuitBreakerPolicy
from opero.executors.state.circuit import (
    Circuit,
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


def policy(**fields: Any) -> CircuitBreakerPolicy:
    return CircuitBreakerPolicy(**{"open_for": 10, **fields})


def fail(circuit: Circuit, under: CircuitBreakerPolicy, now: float = NOW, period: int | None = None) -> None:
    record(circuit, under, now, circuit.period if period is None else period, True, False, "ConnectionError: down")


def succeed(circuit: Circuit, under: CircuitBreakerPolicy, now: float = NOW, period: int | None = None) -> None:
    record(circuit, under, now, circuit.period if period is None else period, False, False, "")


def opened(under: CircuitBreakerPolicy) -> Circuit:
    circuit = new_circuit(under, NOW)
    enter(circuit, "open", NOW)
    return circuit


def test_a_new_circuit_is_closed_and_lets_calls_through_without_needing_their_successes() -> None:
    circuit = new_circuit(policy(), NOW)
    assert (circuit.state, circuit.passing, circuit.needs_results) == ("closed", 0, False)
    assert admit(circuit, policy(), NOW) == 0
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
    succeed(circuit, under, NOW + 13, first)
    assert circuit.state == "half_open"
    succeed(circuit, under, NOW + 13, first)
    assert circuit.state == "closed"


def test_probes_that_do_not_come_back_in_time_are_written_off() -> None:
    under = policy()
    circuit = opened(under)
    lost = admit(circuit, under, NOW + 10)
    assert admit(circuit, under, NOW + 20) == circuit.period
    assert circuit.period != lost


def test_a_failed_or_slow_probe_opens_it_again() -> None:
    under = policy(slow_call=1)
    for failed, slow in ((True, False), (False, True)):
        circuit = opened(under)
        admit(circuit, under, NOW + 10)
        record(circuit, under, NOW + 11, circuit.period, failed, slow, "trouble")
        assert (circuit.state, circuit.since, circuit.last_error) == ("open", NOW + 11, "trouble")


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
        record(circuit, under, NOW, 0, result == "f", result == "l", "" if result == "s" else "trouble")
    assert circuit.state == state


def test_a_new_policy_keeps_what_its_window_holds() -> None:
    under = policy(failure_rate=0.9, window=6, min_calls=6)
    circuit = new_circuit(under, NOW)
    for failed in (False, True, True):
        record(circuit, under, NOW, 0, failed, False, "")
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
            record(circuit, under, now, period, step[0], step[1], "trouble" if step[0] or step[1] else "")
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
            assert after.probes_begun >= after.probes_passed >= 0

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
