"""What a successful call costs, sync and async, beside a hand-written wrapper and the peers."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyresilience
import stamina
import tenacity
from tests.benchmarks.harness import Row, compare

from opero import Policy, RateLimitPolicy, Registry, opero

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEVER = 10**9
"""A limit that is never reached."""

PEERS: dict[str, Any] = {
    "tenacity": tenacity.retry(stop=tenacity.stop_after_attempt(4)),
    "stamina": stamina.retry(on=Exception, attempts=4),
    "pyresilience": pyresilience.resilient(retry=pyresilience.RetryConfig(max_attempts=4)),
}


def value(number: int) -> int:
    return number


async def value_async(number: int) -> int:
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


def client(decorate: Callable[..., Any]) -> Any:
    """An instance of a class with a decorated method."""

    class Client:
        @decorate
        def method(self, number: int) -> int:
            return number

    return Client()


def items(number: int) -> Iterator[int]:
    yield number


def three_of_ours(failures: int = 5, rate: float = NEVER, burst: int = 1) -> Any:
    limit = RateLimitPolicy(rate=rate, burst=burst, max_wait=0)
    return opero(retries=3, min_delay=0, max_delay=0, circuit_breaker=failures, rate_limit=limit)


def three_of_theirs(failures: int = 5, rate: int = NEVER) -> Any:
    return pyresilience.resilient(
        retry=pyresilience.RetryConfig(max_attempts=4, delay=0),
        circuit_breaker=pyresilience.CircuitBreakerConfig(failure_threshold=failures),
        rate_limiter=pyresilience.RateLimiterConfig(max_calls=rate, period=1.0),
    )


def check_that_all_three_work(three: Callable[..., Any]) -> None:
    """Of the three, none is idle: each does its work in a wrapper made like the one that is timed."""
    attempts = 0

    def fails() -> None:
        nonlocal attempts
        attempts += 1
        raise ConnectionError

    def outcome(call: Callable[[], Any]) -> str:
        try:
            call()
        except Exception as error:
            return type(error).__name__
        return "success"

    outcome(three(failures=10, rate=NEVER)(fails))
    assert attempts == 4, f"{attempts} attempts instead of 4"
    open_after_one = three(failures=1)(fails)
    outcome(open_after_one)
    assert outcome(open_after_one) == "CircuitOpenError", "the breaker stayed closed"
    one_a_second = three(rate=1)(lambda: None)
    assert outcome(one_a_second) == "success"
    assert outcome(one_a_second) == "RateLimitExceededError", "the limit was not kept"


def classification(rounds: int) -> Row:
    """What a success costs more if policies decide by kinds of failures than by one class. It classifies nothing."""
    layers: dict[str, Any] = {"retry": 3, "circuit_breaker": 5, "fallback": {"default": None}}
    by_class: dict[str, Any] = {
        "retry": {"retry_on": OSError},
        "circuit_breaker": {"consecutive_failures": 5, "trip_on": OSError},
        "fallback": {"default": None, "on": OSError},
    }
    ours, theirs = Policy(**layers).apply(value), Policy(**by_class).apply(value)
    row = compare("kinds of failures", ours, "opero, one class", theirs, rounds, call="call(1)")
    more = row.ours - row.theirs
    return replace(row, name="kinds of failures: more / 20 ns", ratio=more / 20, target=1.0, note=f"{more:+.0f} ns")


def run(rounds: int) -> list[Row]:
    check_that_all_three_work(three_of_ours)
    check_that_all_three_work(three_of_theirs)
    plain, plain_async = opero(value), opero(value_async)
    rows = [
        compare("retry", plain, "by hand", by_hand(value), rounds, target=0.9, call="call(1)"),
        compare(
            "retry, async",
            plain_async,
            "by hand",
            by_hand_async(value_async),
            rounds,
            target=1.05,
            call="await call(1)",
        ),
    ]
    for name, peer in PEERS.items():
        rows.append(compare("retry", plain, name, peer(value), rounds, call="call(1)"))
        rows.append(compare("retry, async", plain_async, name, peer(value_async), rounds, call="await call(1)"))
    named = opero(policy="api", registry=Registry({"api": Policy(retry=3)}))(value)
    inline = opero(retry=3)(value)
    method, by_hand_method = client(opero), client(by_hand)
    ours, theirs = three_of_ours(), three_of_theirs()
    return [
        *rows,
        compare("retry, a method", method, "by hand", by_hand_method, rounds, target=2.0, call="call.method(1)"),
        compare(
            "retry, a named profile",
            named,
            "opero, the same inline",
            inline,
            rounds,
            call="call(1)",
            note=lambda ours, theirs: f"{ours - theirs:+.0f} ns",
        ),
        classification(rounds),
        compare("retry, generator to its first item", opero(items), "bare", items, rounds, call="next(call(1))"),
        compare(
            "retry + breaker + rate limit",
            ours(value),
            "pyresilience",
            theirs(value),
            rounds,
            target=0.35,
            call="call(1)",
        ),
        compare(
            "retry + breaker + rate limit, async",
            ours(value_async),
            "pyresilience",
            theirs(value_async),
            rounds,
            target=0.35,
            call="await call(1)",
        ),
    ]
