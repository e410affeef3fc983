"""What a successful call costs, sync and async, beside a hand-written wrapper and the peers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyresilience
import stamina
import tenacity
from tests.benchmarks.harness import Row, compare, compare_async

from opero import Policy, Registry, opero

NEVER = 10**9  # a limit that is never reached


def value(number: int = 1) -> int:
    return number


async def value_async(number: int = 1) -> int:
    return number


def by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """The least that a retry can be while nothing fails."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception:
            raise

    return wrapper


def by_hand_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except Exception:
            raise

    return wrapper


class Client:
    @opero
    def bound(self, number: int) -> int:
        return number

    @by_hand
    def by_hand(self, number: int) -> int:
        return number


def pyresilience_of(*kinds: str) -> Any:
    configs: dict[str, Any] = {
        "retry": pyresilience.RetryConfig(max_attempts=4),
        "circuit_breaker": pyresilience.CircuitBreakerConfig(failure_threshold=5),
        "rate_limiter": pyresilience.RateLimiterConfig(max_calls=NEVER, period=1.0),
    }
    return pyresilience.resilient(**{kind: configs[kind] for kind in kinds})


def run(rounds: int) -> list[Row]:
    registry = Registry({"api": Policy(retry=3)})
    three = {"retries": 3, "circuit_breaker": 5, "rate_limit": NEVER}
    theirs = pyresilience_of("retry", "circuit_breaker", "rate_limiter")
    retry_peers = {
        "tenacity": tenacity.retry(stop=tenacity.stop_after_attempt(4)),
        "stamina": stamina.retry(on=Exception, attempts=4),
        "pyresilience": pyresilience_of("retry"),
    }
    plain, plain_async, client = opero(value), opero(value_async), Client()
    named = opero(policy="api", registry=registry)(value)
    named()
    hand, hand_async = by_hand(value), by_hand_async(value_async)
    rows = [
        compare("success under retry", lambda: plain(1), "by hand", lambda: hand(1), 1.5, rounds),
        compare_async(
            "success under retry, async", lambda: plain_async(1), "by hand", lambda: hand_async(1), 1.5, rounds
        ),
        compare("success under a named profile", lambda: named(1), "opero, inline", lambda: plain(1), None, rounds),
        compare("success of a method", lambda: client.bound(1), "by hand", lambda: client.by_hand(1), None, rounds),
    ]
    for name, decorator in retry_peers.items():
        peer, peer_async = decorator(value), decorator(value_async)
        rows += [
            compare("success under retry", lambda: plain(1), name, functools.partial(peer, 1), None, rounds),
            compare_async(
                "success under retry, async",
                lambda: plain_async(1),
                name,
                functools.partial(peer_async, 1),
                None,
                rounds,
            ),
        ]
    ours, ours_async = opero(**three)(value), opero(**three)(value_async)
    peer, peer_async = theirs(value), theirs(value_async)
    return [
        *rows,
        compare("retry + breaker + rate limit", lambda: ours(1), "pyresilience", lambda: peer(1), 0.35, rounds),
        compare_async(
            "retry + breaker + rate limit, async",
            lambda: ours_async(1),
            "pyresilience",
            lambda: peer_async(1),
            0.35,
            rounds,
        ),
    ]
