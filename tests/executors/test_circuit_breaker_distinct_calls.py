"""The circuit breaker counts calls, not attempts, and rounds over fallback values, not values."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.state.dict_homes import Server, home_on
from executors.steady import steady
from opero import AllFailedError, CallTimeoutError, CircuitOpenError, OperoError, Policy, RateLimitExceededError, opero
from opero.executors.circuit_breaker import CircuitBreakerExecutor
from opero.testing import VirtualClock

DOWN = ConnectionError("down")
AT_ONCE = {"min_delay": 0, "max_delay": 0}


def counts(breaker: CircuitBreakerExecutor, now: float = 0.0) -> tuple[int, int]:
    """How many calls the window holds, and how many of them failed."""
    found = breaker.change(lambda circuit: circuit.window.counts(now))
    return found.calls, found.failures


def attempt(call: Any, *args: Any) -> str:
    try:
        call(*args)
    except CircuitOpenError:
        return "rejected"
    except (OperoError, ConnectionError):
        return "failed"
    return "succeeded"


# Attempts of one call


def test_one_broken_call_does_not_open_the_circuit_however_often_it_is_retried(bind: Any) -> None:
    def price(symbol: str) -> float:
        if symbol.startswith("broken"):
            raise ConnectionError(symbol)
        return 1.0

    call = bind(Policy(retry={"retries": 5, **AT_ONCE}, circuit_breaker=5), price)
    assert attempt(call, "broken") == "failed"
    assert bind.bound.stats.executed == 6
    assert [attempt(call, "good") for _ in range(10)] == ["succeeded"] * 10
    # The first attempt of the fifth call opens it, and its retries are rejected.
    assert [attempt(call, f"broken {number}") for number in range(5)] == ["failed"] * 4 + ["rejected"]
    assert bind.bound.stats.executed == 6 + 10 + 4 * 6 + 1
    assert attempt(call, "good") == "rejected"


def test_a_misspelt_argument_is_tried_once_and_does_not_touch_the_circuit(bind: Any) -> None:
    prices = {f"symbol {number}": number for number in range(999)}

    def price(symbol: str) -> int:
        return prices[symbol]

    call = bind(Policy(retry=5, circuit_breaker=5), price)
    symbols = [*prices]
    symbols.insert(500, "ACEM")
    answers = [attempt(call, symbol) if symbol in prices else misspelt(call, symbol) for symbol in symbols]
    assert answers.count("succeeded") == 999
    stats = bind.bound.stats
    assert (stats.calls, stats.executed, stats.retries, stats.failures) == (1000, 1000, 0, 1)
    breaker = bind.bound.binding.circuit_breaker
    assert breaker.state == "closed"
    assert breaker.change(lambda circuit: circuit.consecutive) == 0
    assert bind.slept == []


def misspelt(call: Any, symbol: str) -> str:
    with pytest.raises(KeyError, match=symbol):
        call(symbol)
    return "misspelt"


@pytest.mark.parametrize("policy", [{"cache": True}, {"timeout": "1h"}, {"fallback": {"default": None}}])
def test_that_holds_whatever_other_layers_there_are(bind: Any, script: Any, policy: dict[str, Any]) -> None:
    call = bind(Policy(**policy, retry={"retries": 5, **AT_ONCE}, circuit_breaker=2), script(DOWN))
    attempt(call)
    assert bind.bound.binding.circuit_breaker.state == "closed"
    attempt(call)
    assert bind.bound.binding.circuit_breaker.state == "open"


def test_that_holds_for_the_first_call_of_a_function_that_waits_for_its_profile() -> None:
    from opero import Registry

    registry = Registry({"api": Policy(retry={"retries": 5, **AT_ONCE}, circuit_breaker=2)})

    @opero(policy="api", registry=registry)
    def fails() -> None:
        raise DOWN

    assert [attempt(fails), fails.binding.circuit_breaker.state] == ["failed", "closed"]  # type: ignore[union-attr]
    assert [attempt(fails), fails.binding.circuit_breaker.state] == ["rejected", "open"]  # type: ignore[union-attr]


def test_a_default_breaker_judges_at_least_ten_calls_of_a_minute(bind: Any) -> None:
    def function(*, fails: bool) -> None:
        if fails:
            raise DOWN

    call = bind(Policy(retry={"retries": 3, **AT_ONCE}, circuit_breaker={}), function)

    def state_after(failures: int, successes: int) -> str:
        for number in range(failures + successes):
            attempt(lambda fails: call(fails=fails), number >= successes)
        return str(bind.bound.binding.circuit_breaker.state)

    assert state_after(9, 0) == "closed"
    bind.clock.advance(60)
    assert state_after(4, 6) == "closed"
    bind.clock.advance(60)
    assert state_after(5, 6) == "closed"
    assert state_after(1, 0) == "open"


def test_calls_that_recover_count_as_successes(bind: Any) -> None:
    attempts = 0

    def flaky() -> None:
        nonlocal attempts
        attempts += 1
        if attempts % 2:
            raise DOWN

    breaker = {"failure_rate": 0.5, "window": 20, "min_calls": 10}
    call = bind(Policy(retry={"retries": 1, **AT_ONCE}, circuit_breaker=breaker), flaky)
    assert [attempt(call) for _ in range(20)] == ["succeeded"] * 20
    assert counts(bind.bound.binding.circuit_breaker) == (20, 0)


def test_calls_that_go_on_retrying_open_the_circuit_while_they_are_under_way() -> None:
    clock = VirtualClock()

    async def function() -> None:
        raise DOWN

    policy = Policy(retry={"retries": 9, "min_delay": 100, "max_delay": 100}, circuit_breaker=5)
    bound: Any = policy.apply(function, clock=clock)

    async def main() -> None:
        calls = [asyncio.create_task(bound()) for _ in range(4)]
        await asyncio.sleep(1)
        assert bound.binding.circuit_breaker.state == "closed"
        calls.append(asyncio.create_task(bound()))
        await asyncio.sleep(1)
        assert bound.binding.circuit_breaker.state == "open"
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in results] == [CircuitOpenError] * 5

    clock.run(main())


def always_down(item: int) -> None:
    raise ConnectionError(item)


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_an_item_of_a_map_is_one_call(mode: str) -> None:
    parallel = {"mode": mode, "workers": 2, "on_error": "return", "progress": False}
    bound: Any = Policy(retry={"retries": 5, **AT_ONCE}, circuit_breaker=3, parallel=parallel).apply(always_down)
    assert [type(each) for each in bound.map([1, 2])] == [AllFailedError] * 2
    assert bound.binding.circuit_breaker.state == "closed"
    (last,) = bound.map([3])
    assert isinstance(last, CircuitOpenError)
    assert bound.binding.circuit_breaker.state == "open"


# Rounds over fallback values


def keyed(bind: Any, dead: set[str], **policy: Any) -> Any:
    """A function of a key, bound; keys in `dead` fail."""

    def function(key: str) -> str:
        if key in dead:
            raise ConnectionError(key)
        return key

    return bind(Policy(fallback={"arg": "key"}, **policy), function)


def test_a_dead_value_beside_one_that_works_does_not_count(bind: Any) -> None:
    call = keyed(bind, {"dead"}, circuit_breaker={"failure_rate": 0.01, "window": 10, "min_calls": 1})
    for _ in range(20):
        assert call(["dead", "good"]) == "good"
    assert counts(bind.bound.binding.circuit_breaker) == (10, 0)


def test_a_round_in_which_all_values_fail_is_one_failure(bind: Any) -> None:
    call = keyed(bind, {"a", "b", "c"}, circuit_breaker=2)
    assert [attempt(call, ["a", "b", "c"]) for _ in range(3)] == ["failed", "failed", "rejected"]
    assert bind.bound.stats.executed == 6


def test_a_probe_is_a_whole_round_so_a_dead_value_does_not_keep_the_circuit_open(bind: Any) -> None:
    steady(bind.clock)
    dead = {"a", "b"}
    call = keyed(bind, dead, circuit_breaker={"consecutive_failures": 1, "open_for": 10})
    assert attempt(call, ["a", "b"]) == "failed"
    bind.clock.advance(10)
    assert attempt(call, ["a", "b"]) == "failed"  # both were tried
    assert bind.bound.stats.executed == 4
    bind.clock.advance(20)
    dead.remove("b")
    assert call(["a", "b"]) == "b"
    assert bind.bound.binding.circuit_breaker.state == "closed"


def test_the_next_value_passes_a_half_open_circuit_while_others_are_rejected() -> None:
    clock = steady(VirtualClock())
    dead = {"a", "b"}

    async def function(key: str) -> str:
        await asyncio.sleep(1)
        if key in dead:
            raise ConnectionError(key)
        return key

    policy = Policy(fallback={"arg": "key"}, circuit_breaker={"consecutive_failures": 1, "open_for": 10})
    bound: Any = policy.apply(function, clock=clock)

    async def main() -> None:
        with pytest.raises(AllFailedError):
            await bound(["a", "b"])
        dead.remove("b")
        await asyncio.sleep(10)
        probe = asyncio.create_task(bound(["a", "b"]))
        for _ in range(3):
            await asyncio.sleep(0.6)
            with pytest.raises(CircuitOpenError, match="probes are under way"):
                await bound(["a", "b"])
        assert await probe == "b"
        assert bound.binding.circuit_breaker.state == "closed"

    clock.run(main())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_probe_that_is_interrupted_at_its_second_value_lets_another_one_through(
    bind: Any, interruption: BaseException
) -> None:
    steady(bind.clock)
    raised: dict[str, BaseException] = {"a": DOWN, "b": DOWN}

    def function(key: str) -> None:
        if key in raised:
            raise raised[key]

    breaker = {"consecutive_failures": 1, "open_for": 10, "half_open_calls": 2}
    call = bind(Policy(fallback={"arg": "key"}, circuit_breaker=breaker), function)
    attempt(call, ["a", "b"])
    bind.clock.advance(10)
    raised["b"] = interruption
    circuit = bind.bound.binding.circuit_breaker
    with pytest.raises(type(interruption)):
        call(["a", "b"])
    assert circuit.change(lambda circuit: (circuit.state, circuit.probes_begun)) == ("half_open", 0)


def test_a_round_whose_next_value_is_rejected_says_nothing(bind: Any) -> None:
    limit = {"rate": 0.001, "max_wait": 0}
    call = keyed(bind, {"a", "b"}, circuit_breaker=1, rate_limit=limit)
    with pytest.raises(RateLimitExceededError):
        call(["a", "b"])
    assert bind.bound.binding.circuit_breaker.state == "closed"


def test_a_round_with_an_ignored_error_says_nothing(bind: Any) -> None:
    def function(key: str) -> None:
        raise ValueError(key) if key == "unknown" else ConnectionError(key)

    call = bind(
        Policy(fallback={"arg": "key"}, circuit_breaker={"consecutive_failures": 1, "ignore": ValueError}), function
    )
    for keys in (["unknown", "a"], ["a", "unknown"]):
        with pytest.raises(AllFailedError):
            call(keys)
        assert bind.bound.binding.circuit_breaker.state == "closed"
    assert attempt(call, ["a", "b"]) == "failed"
    assert bind.bound.binding.circuit_breaker.state == "open"


def test_a_round_that_the_total_timeout_ends_is_a_failure() -> None:
    clock = VirtualClock()

    async def function(key: str) -> None:
        await asyncio.sleep(100)

    policy = Policy(fallback={"arg": "key"}, timeout=5, circuit_breaker=1)
    bound: Any = policy.apply(function, clock=clock)

    async def main() -> None:
        with pytest.raises(CallTimeoutError):
            await bound(["a", "b"])

    clock.run(main())
    assert (bound.stats.executed, bound.binding.circuit_breaker.state) == (1, "open")


def test_a_round_is_as_slow_as_the_attempt_that_decided_it(bind: Any) -> None:
    def function(key: str) -> None:
        bind.clock.advance(5 if key == "slow" else 0.5)
        if key != "good":
            raise ConnectionError(key)

    breaker = {"failure_rate": None, "slow_call": 1, "slow_rate": 0.5, "window": 10, "min_calls": 2}
    call = bind(Policy(fallback={"arg": "key"}, circuit_breaker=breaker), function)
    call(["slow", "good"])
    assert bind.bound.binding.circuit_breaker.state == "closed"
    attempt(call, ["dead", "slow"])
    assert bind.bound.binding.circuit_breaker.state == "open"


def test_rounds_and_retries_count_once_where_the_state_is_on_a_server() -> None:
    dead = {"a", "b"}

    async def function(key: str) -> str:
        if key in dead:
            raise ConnectionError(key)
        return key

    retry = {"retries": 2, **AT_ONCE}
    breaker = {"consecutive_failures": 3, "failure_rate": 1, "window": 9, "min_calls": 9}
    bound: Any = Policy(fallback={"arg": "key"}, retry=retry, circuit_breaker=breaker).apply(function)
    server, circuit = Server(), bound.binding.circuit_breaker
    circuit.move_to(home_on(server, circuit))

    async def main() -> None:
        for expected in ((1, 1, 1), (2, 2, 2)):
            with pytest.raises(AllFailedError):
                await bound(["a", "b"])
            assert (circuit.change(lambda found: found.consecutive), *counts(circuit)) == expected
        dead.remove("b")
        assert await bound(["a", "b"]) == "b"
        assert (circuit.change(lambda found: found.consecutive), *counts(circuit)) == (0, 3, 2)
        server.threads.clear()
        assert await bound(["a", "b"]) == "b"
        assert threading.get_ident() not in server.threads

    asyncio.run(main())


# Results that are refused


def test_a_refused_result_is_a_failure(bind: Any, script: Any) -> None:
    retry = {"retries": 2, **AT_ONCE, "retry_if_result": lambda result: result is None}
    call = bind(Policy(retry=retry, circuit_breaker=2), script(None))
    assert [attempt(call) for _ in range(3)] == ["failed", "rejected", "rejected"]
    assert bind.bound.stats.executed == 4


def test_a_call_whose_last_result_is_accepted_has_succeeded(bind: Any, script: Any) -> None:
    retry = {"retries": 2, **AT_ONCE, "retry_if_result": lambda result: result is None}
    breaker = {"failure_rate": 0.5, "window": 10, "min_calls": 3}
    call = bind(Policy(retry=retry, circuit_breaker=breaker), script(None, 1, None, DOWN, 2))
    assert (call(), call()) == (1, 2)
    assert counts(bind.bound.binding.circuit_breaker) == (2, 0)


def test_a_result_that_cannot_be_judged_is_neither(bind: Any) -> None:
    steady(bind.clock)
    results: list[Any] = [DOWN, "unreadable", 1]

    def function() -> Any:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    def refuses(result: Any) -> bool:
        if result == "unreadable":
            raise ValueError(result)
        return False

    breaker = {"consecutive_failures": 1, "open_for": 10}
    call = bind(Policy(retry={"retries": 0, "retry_if_result": refuses}, circuit_breaker=breaker), function)
    assert attempt(call) == "failed"
    bind.clock.advance(10)
    with pytest.raises(ValueError, match="unreadable"):
        call()
    assert bind.bound.binding.circuit_breaker.state == "half_open"
    assert call() == 1
    assert bind.bound.binding.circuit_breaker.state == "closed"


# Against a plain model

SCRIPTS = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=30)
"""For each call, whether each of its attempts succeeds; the last one holds for all that follow."""


@pytest.mark.parametrize("kind", ["sync", "async"])
@given(scripts=SCRIPTS, retries=st.integers(0, 3), values=st.integers(1, 3), failures=st.integers(1, 4))
def test_it_opens_after_as_many_calls_in_a_row_as_do_not_succeed(
    kind: str, scripts: list[list[bool]], retries: int, values: int, failures: int
) -> None:
    script: list[bool] = []
    clock = VirtualClock()
    keys = list(range(values))

    def function(key: int) -> None:
        if not (script.pop(0) if len(script) > 1 else script[0]):
            raise DOWN

    async def function_async(key: int) -> None:
        function(key)

    breaker = {"consecutive_failures": failures}
    policy = Policy(retry={"retries": retries, **AT_ONCE}, fallback={"arg": "key"}, circuit_breaker=breaker)
    bound: Any = policy.apply(function if kind == "sync" else function_async, clock=clock)
    row = 0
    for outcomes in scripts:
        script[:] = outcomes
        attempts = (outcomes + [outcomes[-1]] * values * (retries + 1))[: values * (retries + 1)]
        rounds = [any(attempts[start : start + values]) for start in range(0, len(attempts), values)]
        result = attempt(bound, keys) if kind == "sync" else attempt(lambda: clock.run(bound(keys)))
        if not rounds[0] and row + 1 == failures:
            assert result == ("rejected" if retries else "failed")
            assert bound.binding.circuit_breaker.state == "open"
            return
        row = 0 if any(rounds) else row + 1
        assert result == ("succeeded" if any(rounds) else "failed")
        assert bound.binding.circuit_breaker.state == "closed"
