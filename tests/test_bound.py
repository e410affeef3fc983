"""Bound functions, methods and generators, and their bindings."""

from __future__ import annotations

import abc
import asyncio
import copy
import functools
import inspect
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import pydantic
import pytest

from opero import ConfigError, Policy, Registry, opero, opmap
from opero.testing import VirtualClock

CLOCK = VirtualClock()


class Client:
    def __init__(self, base: str = "") -> None:
        self.base = base
        self.failures = 1

    def fail_once(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError

    @opero(clock=CLOCK)
    def get(self, path: str) -> str:
        """Get a path."""
        self.fail_once()
        return self.base + path

    @opero(clock=CLOCK)
    async def get_async(self, path: str) -> str:
        self.fail_once()
        return self.base + path

    @opero(clock=CLOCK, cache=True)
    def cached(self, path: str) -> list[str]:
        return [self.base + path]

    @opero
    @classmethod
    def of(cls, base: str) -> Client:
        return cls(base)

    @classmethod
    @opero
    def of_inside(cls, base: str) -> Client:
        return cls(base)

    @opero
    @staticmethod
    def join(a: str, b: str) -> str:
        return a + b

    @staticmethod
    @opero
    def join_inside(a: str, b: str) -> str:
        return a + b

    @opmap(mode="thread", workers=2)
    def get_all(self, path: str, suffix: str = "") -> str:
        return self.base + path + suffix

    @opero(clock=CLOCK)
    def pages(self, count: int) -> Iterator[str]:
        self.fail_once()
        for number in range(count):
            yield f"{self.base}{number}"

    @opero(clock=CLOCK)
    async def pages_async(self, count: int) -> AsyncIterator[str]:
        self.fail_once()
        for number in range(count):
            yield f"{self.base}{number}"


def test_methods_are_retried_with_their_instance() -> None:
    assert Client("a/").get("x") == "a/x"
    assert Client.get(Client("b/"), "x") == "b/x"
    assert asyncio.run(Client("c/").get_async("x")) == "c/x"


def test_class_methods_and_static_methods_work_in_either_order() -> None:
    for client in (Client, Client("instance")):
        assert client.of("a").base == "a"
        assert client.of_inside("a").base == "a"
        assert client.join("a", "b") == client.join_inside("a", "b") == "ab"


def test_a_class_method_of_a_subclass_gets_the_subclass() -> None:
    class Special(Client):
        pass

    assert type(Special.of("a")) is Special
    assert type(Special("x").of("a")) is Special


def test_generator_methods_are_retried_up_to_the_first_item() -> None:
    assert list(Client("p").pages(3)) == ["p0", "p1", "p2"]

    async def collect() -> list[str]:
        return [page async for page in Client("q").pages_async(2)]

    assert asyncio.run(collect()) == ["q0", "q1"]


def test_map_and_cache_functions_of_a_method_apply_to_its_instance() -> None:
    first, second = Client("a/"), Client("b/")
    assert first.get.map(["x", "y"]) == ["a/x", "a/y"]
    assert asyncio.run(second.get_async.map(["x"])) == ["b/x"]
    assert first.get_all(["x"], suffix="!") == ["a/x!"]
    assert first.cached("x") is first.cached("x")
    assert second.cached("x") == ["b/x"]
    assert first.cached.cache_get("x") == ["a/x"]
    first.cached.cache_delete("x")
    assert first.cached.cache_get("x") is None
    assert second.cached.cache_get("x") == ["b/x"]
    second.cached.cache_clear()
    assert second.cached.cache_get("x") is None


def test_a_bound_method_has_the_attributes_of_a_method() -> None:
    client = Client("a/")
    method = client.get
    assert method.__self__ is client
    assert method.__func__ is Client.get
    assert (method.__name__, method.__doc__) == ("get", "Get a path.")
    assert str(inspect.signature(method)) == "(path: 'str') -> 'str'"
    assert "bound method Client.get of" in repr(method)
    assert method == client.get
    assert method != Client("a/").get
    assert len({method, client.get}) == 1
    assert method.stats is Client.get.stats
    assert inspect.iscoroutinefunction(client.get_async)
    assert inspect.isfunction(Client.get)
    assert "get" in dict(inspect.getmembers(Client, inspect.isfunction))


def test_a_method_can_be_bound_outside_its_class() -> None:
    class Plain:
        async def get(self, path: str) -> str:
            return path

    bound = Policy(retry=1).apply(Plain.get)
    assert asyncio.run(bound(Plain(), "x")) == "x"
    assert bound.__name__ == "get"
    if sys.version_info >= (3, 12):  # inspect.markcoroutinefunction
        assert inspect.iscoroutinefunction(bound)
    Plain.get = bound  # type: ignore[method-assign, assignment]
    assert asyncio.run(Plain().get.map(["a", "b"])) == ["a", "b"]  # type: ignore[attr-defined]


def test_a_bound_method_pickles_with_its_instance() -> None:
    method = pickle.loads(pickle.dumps(Client("a/").get))
    assert method("x") == "a/x"


def test_methods_can_be_replaced_on_an_instance_and_in_a_subclass() -> None:
    client = Client("a/")
    with mock.patch.object(client, "get", return_value="mocked"):
        assert client.get("x") == "mocked"
    assert client.get("x") == "a/x"

    class Louder(Client):
        @opero(clock=CLOCK)
        def get(self, path: str) -> str:
            return super().get(path).upper()

    assert Louder("a/").get("x") == "A/X"


def test_methods_of_pydantic_models_and_abstract_classes_can_be_bound() -> None:
    class Model(pydantic.BaseModel):
        base: str

        @opero
        def get(self, path: str) -> str:
            return self.base + path

    assert Model(base="a/").get("x") == "a/x"

    class Abstract(abc.ABC):
        @opero
        @abc.abstractmethod
        def get(self) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Abstract()  # type: ignore[abstract]


def test_callable_objects_partials_builtins_and_bound_methods_can_be_bound() -> None:
    class Doubler:
        def __call__(self, value: int) -> int:
            return value * 2

    class AsyncDoubler:
        async def __call__(self, value: int) -> int:
            return value * 2

    policy = Policy(retry=1)
    assert policy.apply(Doubler())(2) == 4
    assert asyncio.run(policy.apply(AsyncDoubler())(2)) == 4
    assert policy.apply(functools.partial(pow, 2))(3) == 8
    assert policy.apply(len)("abc") == 3
    assert policy.apply(Client("a/").fail_once)() is None


def test_an_object_that_is_not_callable_is_refused() -> None:
    with pytest.raises(ConfigError, match="value of type int: it is not callable"):
        Policy().apply(3)  # type: ignore[type-var,call-overload]


def test_the_error_of_a_function_without_a_cache_says_how_to_add_one() -> None:
    with pytest.raises(ConfigError, match="has no cache; give it one with cache=True"):
        Client("a").get.cache_get("x")


def test_bound_functions_can_be_copied_and_a_class_with_them_deep_copied() -> None:
    client = copy.deepcopy(Client("a/"))
    assert client.get("x") == "a/x"


def test_exceptions_of_the_function_keep_their_traceback_and_stop_iteration_is_unchanged() -> None:
    @opero(retries=1, clock=CLOCK, reraise=True)
    def stop() -> None:
        raise StopIteration(5)

    with pytest.raises(StopIteration) as caught:
        stop()
    assert caught.value.value == 5
    assert caught.traceback[-1].name == "stop"


def test_an_empty_policy_adds_no_layer_but_counts() -> None:
    bound: Any = Policy().apply(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bound()
    assert bound.stats.as_dict() == {
        **{name: type(value)() for name, value in bound.stats.as_dict().items()},
        "calls": 1,
        "attempts": 1,
        "failures": 1,
        "kinds": {"unknown": 1},
        "errors": {"ZeroDivisionError": 1},
    }


@pytest.mark.parametrize("base", [{"cache": True}, {"cache": "30m"}])
def test_code_that_uses_the_cache_keeps_working_when_an_operator_switches_it_off(base: Any) -> None:
    registry = Registry({"api": Policy(**base)})

    def function() -> int:
        return 1

    bound: Any = registry.bind(function, "api")
    with registry.override(api={"cache": False}):
        assert bound() == 1
        assert bound.cache_set(2) is False
        assert bound.cache_get() is None
        bound.cache_delete()
        bound.cache_clear()
        assert bound.cache_info().size == 0
