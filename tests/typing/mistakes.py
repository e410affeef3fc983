"""User mistakes that type checkers must refuse.

It is checked, and never run. mypy's `warn_unused_ignores` and pyright's `reportUnnecessaryTypeIgnoreComment` make every
one that is accepted an error.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from opero import (
    Bound,
    BulkheadPolicy,
    CircuitBreakerPolicy,
    FallbackPolicy,
    HooksPolicy,
    ParallelPolicy,
    Policy,
    RateLimitPolicy,
    RetryPolicy,
    opero,
    opmap,
)


@opero(retries=2)
def fetch(url: str, timeout: float = 1.0) -> bytes:
    return url.encode()


@opero
async def fetch_async(url: str) -> bytes:
    return url.encode()


@opmap
def resize(path: str, width: int = 100) -> bytes:
    return path.encode()


@opmap
def load_users(ids: list[int]) -> list[str]:
    return [str(each) for each in ids]


@opmap
async def resize_async(path: str) -> bytes:
    return path.encode()


@opero
def ping(*, host: str = "localhost") -> bool:
    return True


@opero
def add_all(numbers: list[int], **options: str) -> list[float]:
    return [each + 0.5 for each in numbers]


@opero
def load_json(path: str) -> Any:
    return path


class Service:
    @opero
    def get(self, key: int) -> str:
        return str(key)

    @opmap
    def load(self, key: int) -> str:
        return str(key)

    @classmethod
    @opero
    def build(cls, name: str) -> Service:
        return cls()


service = Service()

# Calls with wrong arguments
fetch()  # type: ignore[call-arg]
fetch(1)  # type: ignore[arg-type]
fetch("/", timout=2)  # type: ignore[call-arg]
fetch("/", 1.0, 2)  # type: ignore[call-arg]
service.get("x")  # type: ignore[arg-type]
service.get(service, 1)  # type: ignore[call-arg, arg-type]
Service.build(1)  # type: ignore[arg-type]
fetch.map([1])  # type: ignore[list-item]
fetch.cache_delete(1)  # type: ignore[arg-type]
fetch.cache_set(b"", 1)  # type: ignore[arg-type]
fetch.cache_clear(tag="urls")  # type: ignore[call-arg]

# Maps over what is no iterable of items
resize("path", "other")  # type: ignore[call-overload]
resize(3)  # type: ignore[call-overload]
resize([1])  # type: ignore[list-item]
resize(["a"], height=3)  # type: ignore[call-overload]
resize(["a"], journal=3)  # type: ignore[call-overload]
resize.stream(["a"], progress="always")  # type: ignore[call-overload]
resize.stream([1], journal="run.jsonl")  # type: ignore[list-item]
fetch.map(["a"], journal=b"run.jsonl")  # type: ignore[call-overload]
fetch.map(["a"], verify=True)  # type: ignore[call-overload]
fetch.starmap([1])  # type: ignore[list-item]
fetch.starmap(3)  # type: ignore[call-overload]
resize.starstream([1])  # type: ignore[list-item]
ping.map(["a"])  # type: ignore[arg-type]
add_all.map(["a"])  # type: ignore[list-item]
add_all.map([[1]])  # type: ignore[list-item]
add_all.map([1], mode=1)  # type: ignore[call-overload]
load_json(1)  # type: ignore[arg-type]
load_users(["a"])  # type: ignore[list-item]
service.load(1)  # type: ignore[call-overload]
service.load(["a"])  # type: ignore[list-item]

# Results taken for something else
text: str = fetch("/")  # type: ignore[assignment]
result: bytes = resize(["a"])  # type: ignore[assignment]
coroutine: Callable[[str], Coroutine[Any, Any, bytes]] = fetch  # type: ignore[assignment]


async def forgets_to_await() -> bytes:
    mapped: list[bytes] = resize_async(["a"])  # type: ignore[assignment]
    mapped.clear()
    return fetch_async("/")  # type: ignore[return-value]


async def awaits_what_is_sync() -> None:
    await fetch("/")  # type: ignore[misc]


# What a bound function does not carry
fetch.statistics  # type: ignore[attr-defined]
fetch.stats.callz  # type: ignore[attr-defined]
fetch.policy.retries  # type: ignore[attr-defined]
fetch.policy.retry.retries  # type: ignore[union-attr]

# Options and fields that do not exist, or hold something else
opero(retris=3)  # type: ignore[call-overload]
opero(retries="many")  # type: ignore[call-overload]
opero(cache_ttl=[3])  # type: ignore[call-overload]
opero(policy=3)  # type: ignore[call-overload]
opero(on_error="ignore")  # type: ignore[call-overload]
opmap(mode="threads")  # type: ignore[call-overload]
opmap(worker=3)  # type: ignore[call-overload]
Policy(retries=3)  # type: ignore[call-arg]
Policy(retry="often", cach=True)  # type: ignore[arg-type, call-arg]
Policy.from_options(retris=3)  # type: ignore[call-arg]
Policy().replace(retris=3)  # type: ignore[call-arg]
RetryPolicy(retries=None)  # type: ignore[arg-type]
RetryPolicy(jitter="some")  # type: ignore[arg-type]
RetryPolicy(retry_on=3)  # type: ignore[arg-type]
RetryPolicy(3)  # type: ignore[call-arg, arg-type]
RateLimitPolicy(rates=3)  # type: ignore[call-arg]
BulkheadPolicy(max_concurent=3)  # type: ignore[call-arg]
CircuitBreakerPolicy(scope="global")  # type: ignore[arg-type]
FallbackPolicy(arg=["a"])  # type: ignore[arg-type]
FallbackPolicy(arg="a", order="round-robin")  # type: ignore[arg-type]
FallbackPolicy(arg="a", values=[3])  # type: ignore[list-item]
ParallelPolicy(mode="threads")  # type: ignore[arg-type]

HooksPolicy(on_retry=lambda event: event.seconds)  # type: ignore[attr-defined]
opero(on_retries=print)  # type: ignore[call-overload]

opero(bulkhead="auto")  # type: ignore[call-overload]
opero(priority="low")  # type: ignore[call-overload]

# What cannot be bound
opero(3)  # type: ignore[call-overload]
Policy().apply(3)  # type: ignore[arg-type]
RetryPolicy().apply("fetch")  # type: ignore[arg-type]

# Overrides with other signatures


class OtherResult(Service):
    def get(self, key: int) -> bytes:  # type: ignore[override]
        return b""


class NotAsync(Service):
    @opero
    async def get(self, key: int) -> str:  # type: ignore[override]
        return ""


class OtherParameter(Service):
    @opero
    def get(self, key: str) -> str:  # type: ignore[override]
        return key


# A plain function has no `.map`
plain_for_bound: Bound[[str], bytes] = str.encode  # type: ignore[assignment]
