"""The cache functions of a bound function: get, set, delete, clear, tags and info."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from opero import CacheInfo, ConfigError, MissingExtraError, Policy, clear_cache, opero
from opero.testing import VirtualClock


@pytest.fixture(params=["memory", "disk", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A cache policy for each kind of store."""
    if request.param == "redis":
        yield {"backend": "redis", "ttl": None, "url": request.getfixturevalue("redis_url"), "namespace": tmp_path.name}
    elif request.param == "disk":
        yield {"backend": "disk", "ttl": None, "cache_dir": tmp_path, "namespace": tmp_path.name}
    else:
        yield {"namespace": tmp_path.name}


def user(user_id: int, *, full: bool = False) -> dict[str, Any]:
    calls.append(user_id)
    return {"id": user_id, "full": full}


calls: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()


def test_get_set_delete_clear_and_info(where: dict[str, Any]) -> None:
    bound = Policy(cache=where).apply(user)
    assert bound.cache_get(1) is None
    assert bound(1) == bound(user_id=1, full=False) == bound.cache_get(1) == {"id": 1, "full": False}
    assert bound.cache_set({"id": 2}, 2, full=True)
    assert bound(2, full=True) == {"id": 2}
    assert calls == [1]
    assert bound.cache_info()[:4] == (2, 1, 2, 0)
    bound.cache_delete(user_id=1)
    assert (bound.cache_get(1), bound.cache_info().size) == (None, 1)
    bound(1)
    bound.cache_clear()
    assert bound.cache_info().size == 0
    assert bound.cache_get(2, full=True) is None
    bound(1)
    assert calls == [1, 1, 1]


def test_info_shows_evictions_and_the_maximum_size() -> None:
    bound = Policy(cache={"max_size": 2}).apply(user)
    for number in (1, 2, 3, 3):
        bound(number)
    assert bound.cache_info() == CacheInfo(hits=1, misses=3, size=2, evictions=1, max_size=2)


def test_the_disk_backend_respects_max_size_if_it_is_set(tmp_path: Path) -> None:
    bound = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path, "max_size": 10}).apply(user)
    for number in range(30):
        bound(number)
    assert bound.cache_info().size == bound.cache_info().max_size == 10
    assert bound.cache_get(29) is not None
    unlimited = Policy(cache={"backend": "disk", "ttl": None, "cache_dir": tmp_path, "namespace": "other"}).apply(user)
    assert unlimited.cache_info().max_size is None


class Service:
    def __init__(self, base: str) -> None:
        self.base = base

    def __opero_key__(self) -> str:
        return self.base

    @opero(cache=True, cache_tags="base:{self.base}")
    def get(self, path: str) -> str:
        calls.append(self.base + path)
        return self.base + path

    @opero(cache=True)
    async def get_async(self, path: str) -> str:
        return self.base + path


def test_the_cache_functions_of_a_bound_method_apply_to_its_instance() -> None:
    one, other = Service("a"), Service("b")
    assert [one.get("x"), other.get("x"), one.get("x")] == ["ax", "bx", "ax"]
    assert one.get.cache_set("set", "y")
    assert (one.get("y"), other.get.cache_get("y"), one.get.cache_get("y")) == ("set", None, "set")
    one.get.cache_delete("x")
    assert (one.get.cache_get("x"), other.get.cache_get("x")) == (None, "bx")
    one.get.cache_clear(tags="base:b")
    assert (one.get("y"), other.get.cache_get("x")) == ("set", None)
    Service.get.cache_clear()
    assert one.get.cache_info().size == 0
    assert asyncio.run(one.get_async("x")) == one.get_async.cache_get("x") == "ax"


def test_clearing_a_tag_affects_all_functions_and_only_that_tag(where: dict[str, Any]) -> None:
    users = Policy(cache={**where, "tags": ["users", "user:{user_id}"]}).apply(user)

    def orders(user_id: int, page: int = 1) -> list[int]:
        calls.append(("orders", user_id))
        return [user_id, page]

    paged = Policy(cache={**where, "tags": "user:{user_id}"}).apply(orders)
    for number in (1, 2):
        users(number)
        paged(number)
    del calls[:]
    assert clear_cache(where["namespace"], tags="user:1") == 2
    for number in (1, 2):
        users(number)
        paged(number)
    assert calls == [1, ("orders", 1)]
    assert users.cache_get(2) is not None
    users.cache_clear(tags=["users"])
    assert users.cache_get(1) is users.cache_get(2) is None
    assert paged.cache_get(1) == [1, 1]


def test_clearing_a_tag_through_one_function_clears_it_for_others(where: dict[str, Any]) -> None:
    policy = Policy(cache={**where, "tags": "user:{user_id}"})
    one, other = policy.apply(user), policy.apply(lambda user_id: [user_id])
    one(1)
    other(1)
    one.cache_clear(tags="user:1")
    assert one.cache_get(1) is other.cache_get(1) is None


class Soon:
    """A future: what it stands for has begun. Other awaitables are refused."""

    def __await__(self) -> Iterator[int]:
        yield 1

    def add_done_callback(self, function: Any) -> None: ...


@pytest.mark.parametrize("make", [lambda: iter([1]), lambda: (x for x in [1]), lambda: map(str, [1]), Soon])
def test_results_that_can_be_consumed_only_once_are_not_cached(where: dict[str, Any], make: Any, caplog: Any) -> None:
    bound = Policy(cache=where).apply(make)
    for _ in range(3):
        result = bound()
        assert list(result.__await__() if isinstance(result, Soon) else result) in ([1], ["1"])
    assert bound.stats.attempts == 3
    assert caplog.text.count("only once; return a list") == 1


@pytest.mark.parametrize("ending", ["2", ":v2", "#x", "%3A"])
def test_clearing_a_namespace_does_not_affect_others(where: dict[str, Any], ending: str) -> None:
    here = Policy(cache=where).apply(user)
    there = Policy(cache={**where, "namespace": where["namespace"] + ending}).apply(user)
    here(1)
    there(1)
    assert clear_cache(where["namespace"]) == 1
    assert (here.cache_get(1), there.cache_get(1)) == (None, {"id": 1, "full": False})
    assert clear_cache(where["namespace"] + ending) == 1
    assert there.cache_get(1) is None
    assert clear_cache("no such namespace") == 0


def test_a_map_raises_cached_errors_without_calling_the_function(where: dict[str, Any]) -> None:
    def odd(number: int) -> int:
        calls.append(number)
        if number % 2:
            raise ValueError(number)
        return number

    cache = {**where, "errors": True, "ttl": 60, "serializer": "signed_pickle", "secret": "key"}
    bound = Policy(cache=cache, parallel={"mode": "thread", "on_error": "return"}).apply(odd)
    first, second = bound.map([1, 2, 3]), bound.map([1, 2, 3])
    assert repr(first) == repr(second) == "[ValueError(1), 2, ValueError(3)]"
    assert sorted(calls) == [1, 2, 3]


def test_a_result_computed_while_its_tag_is_cleared_is_not_cached(where: dict[str, Any]) -> None:
    async def slow(user_id: int) -> int:
        calls.append(user_id)
        await asyncio.sleep(0.05)
        return user_id

    bound = Policy(cache={**where, "tags": "user:{user_id}"}).apply(slow)

    async def main() -> None:
        for forget in (
            lambda: clear_cache(where["namespace"], tags="user:1"),
            bound.cache_clear,
            lambda: bound.cache_delete(1),
        ):
            task = asyncio.create_task(bound(1))
            while not calls:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(forget)
            assert await task == 1
            assert bound.cache_get(1) is None
            calls.clear()

    asyncio.run(main())


@pytest.mark.parametrize("argument", [{"a": [1]}, [1, [2]], numpy.arange(4), {1, 2}, None, b"x"], ids=repr)
def test_unhashable_arguments_work_in_every_store(where: dict[str, Any], argument: Any) -> None:
    def function(*args: Any, key: Any = None, **more: Any) -> int:
        calls.append(args)
        return len(calls)

    bound = Policy(cache=where).apply(function)
    assert bound(argument) == bound(argument) == 1
    assert bound(key=argument) == bound(key=argument) == 2
    assert bound(other=argument) == bound(other=argument) == 3


@pytest.mark.parametrize("result", [None, 0, "", [], False])
def test_none_and_falsy_results_are_cached_in_every_store(where: dict[str, Any], result: Any, script: Any) -> None:
    function = script(result, "other")

    def call() -> Any:
        return function()

    bound = Policy(cache=where).apply(call)
    assert [bound(), bound()] == [result, result]


def test_the_error_of_a_function_without_a_cache_says_how_to_add_one() -> None:
    bound = Policy().apply(user)
    for ask in (bound.cache_get, bound.cache_delete):
        with pytest.raises(ConfigError, match="user has no cache; give it one with cache=True"):
            ask(1)
    with pytest.raises(ConfigError, match="has no cache"):
        bound.cache_info()


@pytest.mark.parametrize("switched_off", ["cache", "opero"])
def test_the_cache_functions_work_while_the_cache_is_switched_off(switched_off: str, monkeypatch: Any) -> None:
    if switched_off == "opero":
        monkeypatch.setenv("OPERO_ENABLED", "false")
    bound = Policy(cache={"enabled": switched_off == "opero", "ttl": 60}).apply(user)
    bound(1)
    assert (bound.cache_set({}, 1), bound.cache_get(1), bound.cache_info().size) == (False, None, 0)
    bound.cache_delete(1)
    bound.cache_clear()
    bound(1)
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"backend": "memry"}, "unknown cache backend 'memry'; did you mean 'memory'"),
        ({"backend": "dogpile.cache.rediss"}, "did you mean 'dogpile.cache.redis'"),
        (
            {"backend": "redis", "ttl": None, "url": "redis://:s3cret@host:port"},
            "cannot open cache store redis at host:port: invalid redis URL",
        ),
        (
            {"backend": "disk", "ttl": None, "cache_dir": "/etc/passwd/below"},
            "the cache's disk at /etc/passwd/below cannot be used: (Not a dir|File ex).*; choose another cache_dir",
        ),
        (
            {"backend": "dogpile.cache.redis"},
            "the store of backend 'dogpile.cache.redis' outlives the process, so without a ttl its results .*; set ttl",
        ),
        ({"serializer": "signed_pickle"}, "requires a signing key: set cache.secret or .* OPERO_CACHE_SECRET"),
        ({"tags": "user:{id}"}, "tag 'user:{id}' refers to 'id', which is not a parameter .*; known: full, user_id"),
        ({"tags": "{user_if.name}"}, "did you mean 'user_id'"),
    ],
)
def test_an_unusable_cache_is_refused_at_binding(cache: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Policy(cache=cache).apply(user)
    assert "s3cret" not in str(caught.value)


def test_the_error_names_the_missing_library_of_a_backend() -> None:
    with pytest.raises(MissingExtraError, match="cache backend 'dogpile.cache.pylibmc' cannot be loaded"):
        Policy(cache={"backend": "dogpile.cache.pylibmc", "allow_unsigned_pickle": True}).apply(user)


@pytest.mark.parametrize("backend", ["dogpile.cache.memory", "dogpile.cache.memory_pickle", "dogpile.cache.dbm"])
def test_any_dogpile_backend_works_by_name(backend: str, tmp_path: Path) -> None:
    arguments = {"filename": str(tmp_path / "cache.dbm")} if backend.endswith("dbm") else None
    bound = Policy(cache={"backend": backend, "arguments": arguments, "ttl": 60, "tags": "u:{user_id}"}).apply(user)
    assert bound(1) == bound(1) == {"id": 1, "full": False}
    bound(2)
    assert calls == [1, 2]
    clear_cache(tags="u:1")
    assert (bound.cache_get(1), bound.cache_get(2) is None) == (None, False)
    bound.cache_delete(2)
    assert bound.cache_get(2) is None
    bound(1)
    bound.cache_clear()
    assert bound.cache_get(1) is None
    assert bound.cache_info().size is None


@pytest.mark.parametrize("clear", ["cache_clear", "clear_cache", "namespace"])
def test_cache_info_begins_anew_when_the_cache_is_cleared(clear: str) -> None:
    bound: Any = Policy(cache={"max_size": 2}).apply(user)
    for number in (1, 1, 2, 3):
        bound(number)
    assert bound.cache_info() == (1, 3, 2, 1, 2)
    bound.cache_clear(tags="absent")
    assert bound.cache_info() == (1, 3, 2, 1, 2)
    {"cache_clear": bound.cache_clear, "clear_cache": clear_cache, "namespace": lambda: clear_cache("opero")}[clear]()
    assert bound.cache_info() == (0, 0, 0, 0, 2)
    assert (bound.stats.cache_hits, bound.stats.cache_misses) == (1, 3)
    bound(1)
    bound(1)
    assert bound.cache_info() == (1, 1, 1, 0, 2)
    bound.binding.swap(Policy(cache={"max_size": 3}))
    assert bound.cache_info() == (1, 1, 1, 0, 3)


def test_the_null_backend_caches_nothing() -> None:
    bound = Policy(cache={"backend": "dogpile.cache.null"}).apply(user)
    bound(1)
    bound(1)
    assert calls == [1, 1]


def test_environment_variables_set_defaults_for_policies(monkeypatch: Any, tmp_path: Path, redis_url: str) -> None:
    monkeypatch.setenv("OPERO_CACHE_DIR", str(tmp_path / "env"))
    monkeypatch.setenv("OPERO_CACHE_REDIS_URL", redis_url)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "opero_cache_secret").write_text("key")
    monkeypatch.setenv("OPERO_SECRETS_DIR", str(secrets))
    on_disk = Policy(cache={"backend": "disk", "ttl": None}).apply(user)
    on_disk(1)
    assert (tmp_path / "env" / "opero.sqlite3").exists()
    in_redis: Any = Policy(cache={"backend": "redis", "ttl": None}).apply(lambda: {1, 2})
    assert in_redis() == in_redis() == {1, 2}  # a signed pickle, as there is a secret
    assert in_redis.stats.cache_hits == 1
    assert in_redis.binding.cache.store.backend.client.connection_pool.connection_kwargs["port"] == int(
        redis_url.rpartition(":")[2].partition("/")[0]
    )


def test_a_virtual_clock_works_with_shared_stores(tmp_path: Path) -> None:
    clock = VirtualClock()
    clock.now -= clock.EPOCH  # the store itself uses the wall clock
    import time

    clock.now += time.time()
    bound = Policy(cache={"backend": "disk", "cache_dir": tmp_path, "ttl": 100}).apply(user, clock=clock)
    bound(1)
    clock.advance(99)
    bound(1)
    assert calls == [1]
    clock.advance(2)
    bound(1)
    assert calls == [1, 1]
