"""The order of the layers, what is fused, and what is refused when a policy is bound."""

from __future__ import annotations

from typing import Any

import pytest

from opero import AllFailedError, CircuitOpenError, ConfigError, Policy
from opero.testing import VirtualClock


def one(key: str = "") -> int:
    return 1


def generator() -> Any:
    yield 1


async def one_async() -> int:
    return 1


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"cache": True}, "cannot have cache: it yields items one by one"),
        ({"parallel": "thread"}, "cannot have parallel"),
        ({"retry": {"retry_if_result": bool}}, "no result for retry_if_result to check"),
    ],
)
def test_policies_that_generators_cannot_have_are_rejected_at_binding(policy: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Policy(**policy).apply(generator)


def test_a_sync_function_cannot_have_an_async_fallback() -> None:
    with pytest.raises(ConfigError, match="cannot await its async fallback .*one_async; use a sync fallback"):
        Policy(fallback={"function": one_async}).apply(one)


def test_layers_run_in_the_documented_order() -> None:
    """Each pair of neighbours is told apart by what happens where they meet."""
    clock = VirtualClock()
    failing = True

    def function(key: str = "a") -> str:
        if failing:
            raise ConnectionError(key)
        return key

    def bound(**kinds: Any) -> Any:
        return Policy.model_validate(kinds).apply(function, clock=clock)

    # cache → fallback result: the fallback's answer is not cached
    cached = bound(cache=True, fallback={"default": "none"})
    assert cached() == "none"
    failing = False
    assert cached() == "a"
    failing = True
    assert cached() == "a"
    # fallback result → timeout (total): it answers for a call that ran out of time
    assert bound(fallback={"default": "late"}, timeout=0.05, retry={"min_delay": 1, "max_delay": 1})() == "late"
    # timeout (total) → retry: the delays count
    with pytest.raises(TimeoutError):
        bound(timeout=0.05, retry={"min_delay": 1, "max_delay": 1})()
    # retry → fallback values: a round tries all of them before it waits
    with pytest.raises(AllFailedError) as caught:
        bound(retry=1, fallback={"arg": "key"})(["a", "b"])
    assert [str(error) for error in caught.value.errors] == ["a", "b", "a", "b"]

    # fallback values → circuit breaker: it is asked before the attempt with each value
    def open_and_fail(key: str) -> None:
        breaking.binding.circuit_breaker.force_open()
        raise ConnectionError(key)

    breaking: Any = Policy(fallback={"arg": "key"}, circuit_breaker=9).apply(open_and_fail, clock=clock)
    with pytest.raises(CircuitOpenError):
        breaking(["a", "b"])
    assert breaking.stats.executed == 1
    # circuit breaker → rate limit: an open circuit takes no permit
    started = clock.monotonic()
    limited = bound(circuit_breaker=1, rate_limit=1)
    with pytest.raises(ConnectionError):
        limited()
    for _ in range(5):
        with pytest.raises(CircuitOpenError):
            limited()
    assert clock.monotonic() == started


@pytest.mark.parametrize(
    ("policy", "direct"),
    [
        ({}, True),
        ({"retry": 3}, True),
        ({"retry": 3, "parallel": "thread"}, True),
        ({"retry": {"retry_if_result": bool}}, False),
        ({"retry": 3, "fallback": {"arg": "key"}}, False),
        ({"retry": 3, "timeout": 5}, False),
        ({"retry": 3, "circuit_breaker": 5}, False),
        ({"retry": {"enabled": False}, "cache": {"enabled": False}}, True),
    ],
)
def test_without_a_layer_the_function_is_called_directly(policy: Any, direct: bool) -> None:
    chain = Policy.model_validate(policy).apply(one).binding.resolved()
    assert (chain.function is one) is direct
