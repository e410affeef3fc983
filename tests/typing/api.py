"""User code that type checkers must accept, with the types they must see. It is checked, and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar, assert_type

from opero import (
    AdaptiveTTL,
    AsyncBound,
    AsyncMapped,
    Bound,
    BulkheadPolicy,
    CacheEntry,
    CacheInfo,
    CachePolicy,
    Changes,
    CircuitBreakerPolicy,
    Clock,
    Failure,
    FallbackPolicy,
    HedgePolicy,
    HooksPolicy,
    MapError,
    Mapped,
    ParallelPolicy,
    Policy,
    PriorityPolicy,
    RateLimitPolicy,
    Registry,
    RetryPolicy,
    Stats,
    ThrottlePolicy,
    TimeoutPolicy,
    Tuning,
    Watch,
    clear_cache,
    on,
    opero,
    opmap,
    tune,
)
from opero.events import CacheFailed

T = TypeVar("T")

# A function keeps its signature, bare and called


@opero
def fetch(url: str, timeout: float = 1.0, *, verify: bool = True) -> bytes:
    return url.encode()


@opero()
def with_defaults(url: str) -> int:
    return len(url)


@opero(policy="api")
def named(url: str) -> int:
    return len(url)


@opero(policy=Policy(retry=5), registry=Registry({}), clock=Clock())
def with_policy(url: str) -> int:
    return len(url)


@opero(
    cache_ttl=AdaptiveTTL(hot="2h"),
    cache_backend="disk",
    cache_dir=Path("/tmp"),
    cache_stale_ttl="1h",
    cache_if=lambda result: result is not None,
    cache_tags=["urls", "url:{url}"],
)
def with_cache(url: str) -> int:
    return len(url)


@opero(retries=5, cache=True, cache_ttl="5m", rate_limit="50/s", timeout=2, arg_fallback="key", retry_on=OSError)
def with_options(url: str, key: str | list[str] = "k") -> int:
    return len(url)


assert_type(fetch("/", 2.0, verify=False), bytes)
assert_type(fetch(url="/"), bytes)
assert_type(with_defaults("/"), int)
assert_type(named("/"), int)
assert_type(with_policy("/"), int)
assert_type(with_options("/", key=["a", "b"]), int)

assert_type(fetch.policy, Policy)
assert_type(fetch.policy.retry, RetryPolicy | None)
assert_type(fetch.stats, Stats)
assert_type(fetch.stats.calls, int)
assert_type(fetch.__name__, str)
assert_type(fetch.map(["/a", "/b"]), list[bytes])
assert_type(fetch.map(("/a", "/b"), 2.0, verify=False), list[bytes])
assert_type(fetch.map(["/a"], 2.0, journal="run.jsonl"), list[bytes])
assert_type(next(fetch.stream(["/a"], 2.0, verify=False)), bytes)
assert_type(fetch.starmap([("/a", 2.0), ("/b",)], verify=False), list[bytes])
assert_type(fetch.starmap(zip(["/a"], [2.0], strict=True), journal="run.jsonl"), list[bytes])
assert_type(next(fetch.starstream([("/a", 2.0)], progress=True)), bytes)
assert_type(fetch.cache_get("/"), bytes | None)
assert_type(fetch.cache_entry("/"), CacheEntry[bytes] | None)
fetch.cache_delete("/")
assert_type(fetch.cache_set(b"", "/", verify=False), bool)
assert_type(fetch.cache_info(), CacheInfo)
assert_type(fetch.cache_info().size, int | None)
fetch.cache_clear(tags=["urls"])
assert_type(clear_cache("opero", tags="urls"), int)
assert_type(on(CacheFailed, lambda event: print(event.cache, event.error)), Callable[[], None])
assert_type(on("retry_scheduled", lambda event: print(event.delay), policy="api"), Callable[[], None])
fetch.cache_clear()


def takes_a_callable(function: Callable[[str], bytes]) -> None: ...


takes_a_callable(fetch)


async def takes_a_coroutine_function(function: Callable[[str], Coroutine[Any, Any, bytes]]) -> None: ...


# Async functions


@opero
async def fetch_async(url: str, timeout: float = 1.0) -> bytes:
    return url.encode()


@opero(retries=2)
async def fetch_async_with_options(url: str) -> bytes:
    return url.encode()


async def uses_async() -> None:
    assert_type(await fetch_async("/", timeout=2), bytes)
    assert_type(await fetch_async_with_options("/"), bytes)
    assert_type(await fetch_async.map(["/"], timeout=2), list[bytes])
    assert_type(fetch_async.stats, Stats)
    assert_type(fetch_async.policy, Policy)
    assert_type(fetch_async.cache_get("/"), bytes | None)
    await takes_a_coroutine_function(fetch_async)


async def takes_an_async_bound(function: AsyncBound[[str], T]) -> T:
    takes_a_text: Callable[[str], Coroutine[Any, Any, T]] = function
    return await takes_a_text("/")


# Functions whose results are Any or of the type of an argument


@opero
def load_json(path: str, encoding: str = "utf-8") -> Any:
    return path


@opero(retries=2)
def first(items: list[T]) -> T:
    return items[0]


@opero
def identity(item: T) -> T:
    return item


@opero
async def fetch_json(url: str) -> dict[str, Any]:
    return {}


@opero
async def identity_async(item: T) -> T:
    return item


@opmap
def load_all_json(path: str) -> Any:
    return path


assert_type(load_json("a.json", encoding="ascii"), Any)
assert_type(load_json.stats, Stats)
assert_type(first([1]), int)
assert_type(identity("a"), str)
assert_type(Policy().apply(identity)("a"), str)
loaded: list[Any] = load_json.map(["a.json"], encoding="ascii")
streamed: Iterator[Any] = load_json.stream(["a.json"], journal="run.jsonl")
same: list[int] = identity.map([1, 2])
star_loaded: list[Any] = load_json.starmap([("a.json", "ascii")])
also_loaded: list[Any] = load_all_json(["a.json"])


async def uses_results_of_any_type() -> None:
    assert_type(await fetch_json.map(["/"]), list[dict[str, Any]])
    assert_type(await anext(fetch_json.stream(["/"])), dict[str, Any])
    assert_type(await fetch_json.starmap([("/",)]), list[dict[str, Any]])
    assert_type(await anext(fetch_json.starstream([("/",)])), dict[str, Any])
    assert_type(await identity_async(1), int)


# Variable parameters, and maps in the place of callables


@opero
def with_variable(url: str, *words: int, **options: str) -> int:
    return len(url)


@opero
def add_all(numbers: list[int], **options: str) -> list[float]:
    return [each + 0.5 for each in numbers]


assert_type(with_variable("/", 1, 2, mode="x"), int)
assert_type(with_variable.map(["/"], 1, 2, mode="x"), list[int])
assert_type(add_all.map([1, 2], mode="x"), list[float])
assert_type(next(add_all.stream([1, 2])), float)
map_of_fetch: Callable[[list[str]], list[bytes]] = fetch.map


# Generators of both kinds


@opero
def lines(path: str) -> Iterator[str]:
    yield path


@opero(retries=2)
async def lines_async(path: str) -> AsyncIterator[str]:
    yield path


assert_type(lines("/"), Iterator[str])
assert_type(lines_async("/"), AsyncIterator[str])


# Methods, class methods, static methods


class Service:
    @opero
    def get(self, key: int, *, fresh: bool = False) -> str:
        return str(key)

    @opero(retries=2)
    async def get_async(self, key: int) -> str:
        return str(key)

    @classmethod
    @opero
    def build(cls, name: str) -> Service:
        return cls()

    @opero
    @classmethod
    def build_below(cls, name: str) -> Service:
        return cls()

    @classmethod
    @opero
    async def build_async(cls, name: str) -> Service:
        return cls()

    @classmethod
    @opero
    async def build_same(cls, name: str) -> Self:
        return cls()

    @opero
    def load_json(self, key: int) -> Any:
        return key

    @staticmethod
    @opero
    def parse(text: str) -> int:
        return int(text)

    @opmap
    def load(self, key: int, fresh: bool = False) -> str:
        return str(key)

    @opmap(mode="thread")
    def load_batch(self, keys: list[int]) -> list[str]:
        return [str(key) for key in keys]

    @opmap
    async def load_async(self, key: int) -> str:
        return str(key)

    @opmap
    async def load_batch_async(self, keys: list[int]) -> list[str]:
        return [str(key) for key in keys]

    @opmap
    @classmethod
    def load_all(cls, key: int) -> str:
        return str(key)


service = Service()
assert_type(service.get(1, fresh=True), str)
assert_type(service.get.map([1, 2], fresh=True), list[str])
assert_type(next(service.get.stream([1, 2], fresh=True)), str)
assert_type(service.get.map([1, 2], journal="run.jsonl"), list[str])
assert_type(service.get.starmap([(1, True)]), list[str])
assert_type(next(service.get.starstream([(1, True)])), str)
assert_type(service.get.stats, Stats)
assert_type(service.get.cache_get(1), str | None)
assert_type(Service.get(service, 1), str)
assert_type(Service.build("x"), Service)
assert_type(service.build("x"), Service)
assert_type(Service.build.map(["x"]), list[Service])
assert_type(Service.build_below("x"), Service)
assert_type(Service.parse("1"), int)
assert_type(service.parse("1"), int)
assert_type(service.load_json(1), Any)
json_of_service: list[Any] = service.load_json.map([1])
assert_type(service.load([1, 2]), list[str])
assert_type(service.load([1, 2], fresh=True), list[str])
assert_type(service.load.stats, Stats)
assert_type(service.load_batch([1, 2]), list[str])
assert_type(Service.load_all([1]), list[str])


async def uses_async_methods() -> None:
    assert_type(await service.get_async(1), str)
    assert_type(await service.get_async.map([1]), list[str])
    assert_type(await service.get_async.starmap([(1,)]), list[str])
    assert_type(await anext(service.get_async.stream([1], journal="run.jsonl")), str)
    assert_type(await Service.build_async("x"), Service)
    assert_type(await Service.build_same.map(["x"]), list[Service])
    assert_type(await service.load_async([1]), list[str])
    assert_type(await service.load_batch_async([1]), list[str])


# Maps


@opmap
def resize(path: str, width: int = 100) -> bytes:
    return path.encode()


@opmap(policy="batch", mode="process", workers=4)
def resize_with_options(path: str) -> bytes:
    return path.encode()


@opmap
def load_users(ids: list[int], region: str = "eu") -> list[str]:
    return [str(each) for each in ids]


@opmap
async def resize_async(path: str, width: int = 100) -> bytes:
    return path.encode()


async def some_paths() -> AsyncIterator[str]:
    yield "a"


@opmap(batch_size=10)
async def load_users_async(ids: list[int]) -> list[str]:
    return [str(each) for each in ids]


assert_type(resize(["a", "b"]), list[bytes])
assert_type(resize(iter("ab"), width=3), list[bytes])
assert_type(resize.map(["a"], 3), list[bytes])
assert_type(resize(["a"], journal="run.jsonl"), list[bytes])
assert_type(resize(["a"], 3, journal=Path("run.jsonl"), failed_only=True), list[bytes])
assert_type(resize(["a"], progress=lambda progress: print(progress.rate)), list[bytes])
assert_type(list(resize.stream(iter("ab"), width=3)), list[bytes])
assert_type(next(resize.stream(["a"], journal="run.jsonl")), bytes)
resize.stream(["a"]).close()
assert_type(resize.starmap([("a", 3)]), list[bytes])
assert_type(next(resize.starstream([("a", 3)])), bytes)
assert_type(resize.stats, Stats)
assert_type(resize.policy, Policy)
assert_type(resize_with_options(["a"]), list[bytes])
assert_type(load_users([1, 2]), list[str])
assert_type(load_users(range(3), region="us"), list[str])
assert_type(next(load_users.stream(range(3), region="us")), str)
assert_type(tune(resize.__wrapped__, ["a"], seconds=1), Tuning)
assert_type(opmap(**tune(len, ["a"]).options)(len)(["a"]), list[int])

try:
    resize(["a"])
except MapError as caught:
    assert_type(caught.results, dict[int, Any])
    assert_type(caught.failures, tuple[Failure, ...])
    assert_type(caught.failures[0].exception, Exception)


async def uses_async_maps() -> None:
    assert_type(await resize_async(["a"], width=3), list[bytes])
    assert_type(await load_users_async([1]), list[str])
    assert_type(await resize_async.map(["a"]), list[bytes])
    assert_type(await resize_async.starmap([("a", 3)]), list[bytes])
    assert_type(await anext(resize_async.starstream([("a", 3)])), bytes)
    assert_type(await resize_async(some_paths(), journal="run.jsonl"), list[bytes])
    async for each in resize_async.stream(some_paths(), width=3):
        assert_type(each, bytes)
    async for user in load_users_async.stream([1, 2], progress=True):
        assert_type(user, str)


# The same as objects


def plain(url: str, timeout: float = 1.0) -> bytes:
    return url.encode()


async def plain_async(url: str) -> bytes:
    return url.encode()


def plain_lines(path: str) -> Iterator[str]:
    yield path


policy = Policy(retry=RetryPolicy(retries=5), timeout=TimeoutPolicy(total="10s"))
RetryPolicy(jitter="equal"), RetryPolicy(jitter=False), Policy.from_options(jitter="none")
assert_type(policy.apply(plain)("/", timeout=2), bytes)
assert_type(policy.apply(plain).stats, Stats)
assert_type(policy.apply(plain_lines)("/"), Iterator[str])
assert_type(RetryPolicy().apply(plain)("/"), bytes)
assert_type(policy.replace(retries=3), Policy)
assert_type(RetryPolicy().replace(retries=3), RetryPolicy)
bound: Bound[[str, float], bytes] = policy.apply(plain)
async_bound: AsyncBound[[str], bytes] = policy.apply(plain_async)
mapped: Mapped[str, [int], bytes] = resize
async_mapped: AsyncMapped[str, [int], bytes] = resize_async
as_a_callable: Callable[[list[str]], list[bytes]] = resize


async def uses_applied() -> None:
    assert_type(await policy.apply(plain_async)("/"), bytes)
    assert_type(await RetryPolicy().apply(plain_async, clock=Clock())("/"), bytes)


# Policies, in every way to write them

Policy(retry=5, cache=True, rate_limit="50/s", timeout="5s", circuit_breaker=5, bulkhead=20, parallel="process")
Policy(hedge="p95")
Policy(retry={"retries": 5}, cache="30m", rate_limit=10, timeout=timedelta(seconds=5), circuit_breaker=False)
Policy(cache=None, fallback=FallbackPolicy(default=None))
Policy(bulkhead="adaptive", throttle=2, priority="background", parallel={"workers": "adaptive"})
RetryPolicy(min_delay="250ms", max_delay=timedelta(minutes=1), retry_on=[ConnectionError, "requests.HTTPError?"])
RetryPolicy(retry_on=OSError, retry_on_status=[429, "5xx"], retry_if_result=lambda result: result is None)
CachePolicy(ttl="30m", key=lambda *args, **kwargs: args)
CachePolicy(ttl=lambda: 3.0, secret="s3cret", arguments={"path": "x"})
RateLimitPolicy(rate="1000/min", max_wait="2s", cost="tokens")
RateLimitPolicy(rate=0.5, cost=lambda: 2.0)
TimeoutPolicy(total=5, attempt="1s")
CircuitBreakerPolicy(failure_rate=0.5, window="30s", slow_call="2s", ignore=[KeyError])
HedgePolicy(after="200ms", max=2, budget="5%")
BulkheadPolicy(max_concurrent=3, max_wait="1s", scope="function")
BulkheadPolicy(max_concurrent="adaptive", min_limit=2, max_limit=50, initial_limit=8)
ThrottlePolicy(ratio=1.5, window="10s", trip_on=["throttled", ConnectionError])
PriorityPolicy(level="critical")
FallbackPolicy(arg="api_key")
FallbackPolicy(arg="api_key", values=["secret:KEY"], remember="5m", order="weighted", weights=[1.5])
FallbackPolicy(arg="api_key", remember=False, order="round_robin")
FallbackPolicy(function="app.module:backup")
ParallelPolicy(workers="adaptive", mode="thread")
ParallelPolicy(mode="thread", workers=4, deadline="1h", max_memory="2GB")
assert_type(RetryPolicy().min_delay, float)
assert_type(TimeoutPolicy(total=1).total, float | None)
assert_type(Policy.from_options(retries=3, cache_ttl=5), Policy)
assert_type(Registry({})["api"], Policy)


def of_one(item: str, scale: float = 1.0) -> int:
    return int(scale)


async def of_one_async(item: str) -> int:
    return 1


registry = Registry({"api": Policy()})
assert_type(registry.bind(of_one, "api", retries=2)("a", scale=2.0), int)
assert_type(registry.bind(of_one, "api", mapped=True)(["a", "b"]), list[int])
assert_type(registry.bind(of_one_async, "api").stats, Stats)
assert_type(registry.reload(), Changes)
assert_type(registry.bindings()[0].policy, Policy)
with registry.override(api={"retry": {"retries": 0}}) as overridden, registry.watch(files=False, sighup=True) as watch:
    assert_type(overridden, Registry)
    assert_type(watch, Watch)


async def bound_async() -> None:
    assert_type(await registry.bind(of_one_async, "api")("a"), int)
    assert_type(await registry.bind(of_one_async, "api", mapped=True)(["a"]), list[int])


# Hooks: a handler knows its event


@opero(retry=3, on_retry=lambda event: print(event.delay * 2), on_open=["app:page", lambda event: print(event.breaker)])
def hooked(key: str) -> int:
    return len(key)


async def told(event: CacheFailed) -> None: ...


HooksPolicy(on_cache_failed=told, on_success=lambda event: event.seconds, on_reject="app:count", on_wait=None)
Policy(hooks={"on_retry": print})
Policy.from_options(on_failure=lambda event: event.kind, hooks=False)
