"""The hedge policy: its forms, what it refuses, and what it contradicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from opero import ConfigError, HedgePolicy, Policy
from opero.binding.target import TRAITS, Traits
from opero.policies.bounds import bounds
from opero.policies.contradictions import contradictions


@pytest.mark.parametrize(
    ("given", "after"),
    [("p95", "p95"), (" P99.9 ", "p99.9"), ("200ms", 0.2), (3, 3.0), ("PT2S", 2.0), (True, "p95"), ({}, "p95")],
)
def test_it_is_written_as_a_percentile_or_a_duration(given: Any, after: Any) -> None:
    policy = Policy(hedge=given).hedge
    assert policy is not None
    assert (policy.after, policy.max, policy.budget) == (after, 1, 0.05)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"after": "p5"}, '\'p5\' is no percentile: use "p50" to "p99.99", or a duration'),
        ({"after": "p100"}, "is no percentile"),
        ({"after": "q95"}, "'q95'"),
        ({"after": 0}, "0 is invalid: use a value > 0, or a percentile"),
        ({"after": -1}, "-1 is invalid"),
        ({"after": None}, "None"),
        ({"max": 0}, "max"),
        ({"budget": 0}, "budget"),
        ({"budget": 2}, "budget"),
        ({"shadow": True}, "a hedge changes no result; begin with a small budget"),
        ({"delay": 1}, "unknown field 'delay' of HedgePolicy"),
    ],
)
def test_what_is_invalid_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HedgePolicy(**fields)
    assert said in str(caught.value)


def test_a_generator_cannot_be_hedged() -> None:
    def items() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="is a generator function and cannot have hedge"):
        Policy(hedge=True).apply(items)


def test_what_may_take_effect_once_only_cannot_be_hedged() -> None:
    def transfer() -> None: ...

    setattr(transfer, TRAITS, Traits(why_once=lambda error: "its commit had begun"))
    with pytest.raises(ConfigError, match="it cannot be repeated while one runs; add hedge=False"):
        Policy(hedge=True).apply(transfer)
    Policy(hedge=False).apply(transfer)


def test_a_sync_function_that_must_stay_in_the_thread_of_its_caller_cannot_be_hedged() -> None:
    def query() -> None: ...

    async def query_async() -> None: ...

    policy = Policy(hedge=True, timeout={"total": 5, "enforce": "wait"})
    with pytest.raises(ConfigError, match="runs in the thread of its caller, and with hedge in helper threads"):
        policy.apply(query)
    policy.apply(query_async)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hedge": "5s", "timeout": "5s"}, "timeout.total (5s) ends it before that"),
        ({"hedge": "2s", "timeout": {"attempt": 1, "total": 9}}, "timeout.attempt (1s) ends it before that"),
        ({"hedge": "1s", "timeout": {"attempt": 2}}, None),
        ({"hedge": "p95", "timeout": 1}, None),
        ({"hedge": "5s", "timeout": {"total": 1, "enforce": "none"}}, None),
    ],
)
def test_a_hedge_that_never_begins_is_a_contradiction(fields: dict[str, Any], says: str | None) -> None:
    found = contradictions(Policy(**fields))
    assert (found == []) if says is None else (says in found[0].text)


def test_each_attempt_may_come_to_as_many_as_it_has_hedges() -> None:
    assert bounds(Policy(hedge={"max": 2}, retry=3)).attempts == 12
