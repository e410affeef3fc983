"""Bound methods are methods, and bound functions are functions, to the standard library and to frameworks."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import enum
import functools
import inspect
import pickle
import pydoc
import re
import types
import typing
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pydantic
import pytest

from opero import ConfigError, Policy, opero, opmap
from opero.testing import VirtualClock


class Client:
    """A client."""

    def __init__(self, base: str = "") -> None:
        self.base = base

    @opero
    def get(self, path: str, *, query: str = "") -> str:
        """Get a path."""
        return self.base + path + query

    @opero
    async def get_async(self, path: str) -> str:
        return self.base + path

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

    @opmap(mode="thread")
    def get_all(self, path: str) -> str:
        return self.base + path

    def plain(self, path: str) -> str:
        return self.base + path


BOUND = ("get", "get_async", "get_all")


# What inspect says


@pytest.mark.parametrize("name", BOUND)
def test_inspect_takes_a_bound_method_for_a_method(name: str) -> None:
    on_instance, on_class, in_class = getattr(Client(), name), getattr(Client, name), vars(Client)[name]
    assert inspect.ismethod(on_instance)
    assert inspect.isfunction(on_class)
    assert inspect.isfunction(in_class)
    assert all(inspect.isroutine(each) for each in (on_instance, on_class, in_class))
    assert not isinstance(in_class, staticmethod)
    assert name in dict(inspect.getmembers(Client, inspect.isfunction))
    assert name in dict(inspect.getmembers(Client(), inspect.ismethod))


def test_class_attributes_are_classified_as_of_a_plain_class() -> None:
    kinds = {each.name: each.kind for each in inspect.classify_class_attrs(Client)}
    assert {name: kinds[name] for name in (*BOUND, "plain")} == dict.fromkeys((*BOUND, "plain"), "method")
    assert (kinds["of"], kinds["of_inside"], kinds["join"]) == ("class method", "class method", "static method")


def test_signatures_leave_out_the_instance_where_it_is_given() -> None:
    assert str(inspect.signature(Client().get)) == "(path: 'str', *, query: 'str' = '') -> 'str'"
    assert str(inspect.signature(Client.get)) == "(self, path: 'str', *, query: 'str' = '') -> 'str'"
    assert str(inspect.signature(Client.of)) == "(base: 'str') -> 'Client'"


def test_a_bound_method_is_documented_like_a_method() -> None:
    text = pydoc.plain(pydoc.render_doc(Client))
    assert "get(self, path: 'str', *, query: 'str' = '') -> 'str'" in text
    assert "Get a path." in text
    assert "Get a path." in pydoc.plain(pydoc.render_doc(Client().get))
    assert re.search(r"Methods defined here:(?:(?!----).)* get_all\(", text, re.DOTALL)


def test_module_name_and_source_are_those_of_the_function() -> None:
    for method in (Client().get, Client.get, vars(Client)["get"]):
        assert method.__module__ == __name__
        assert (method.__name__, method.__qualname__) == ("get", "Client.get")
        assert method.__doc__ == "Get a path."
        assert "return self.base + path + query" in inspect.getsource(method)


@pytest.mark.parametrize("where", ["instance", "class", "descriptor"])
def test_async_methods_are_coroutine_functions(where: str) -> None:
    method = {"instance": Client().get_async, "class": Client.get_async, "descriptor": vars(Client)["get_async"]}[where]
    assert inspect.iscoroutinefunction(method)


# Mocks


def test_autospec_keeps_the_signature_of_methods() -> None:
    client = mock.create_autospec(Client, instance=True)
    client.get.return_value = "mocked"
    assert client.get("x") == "mocked"
    with pytest.raises(TypeError):
        client.get()
    with pytest.raises(TypeError):
        client.get("x", unknown=1)


def test_a_method_is_patched_with_autospec() -> None:
    with mock.patch.object(Client, "get", autospec=True, return_value="mocked") as patched:
        client = Client("a/")
        assert client.get("x") == "mocked"
        patched.assert_called_once_with(client, "x")
        with pytest.raises(TypeError):
            client.get()
    assert Client("a/").get("x") == "a/x"
    with mock.patch.object(Client("a/"), "get", autospec=True, return_value="mocked") as patched:
        patched("x")
        patched.assert_called_once_with("x")


def test_autospec_of_an_async_method_is_awaited() -> None:
    client = mock.create_autospec(Client, instance=True)
    client.get_async.return_value = "mocked"
    assert asyncio.run(client.get_async("x")) == "mocked"
    client.get_async.assert_awaited_once_with("x")


def test_autospec_of_a_bound_function_has_its_attributes() -> None:
    double: Any = mock.create_autospec(opero(lambda number: number * 2))
    double.map.return_value = [2]
    assert double.map([1]) == [2]


# Classes of all kinds


class TestInAClass:
    """pytest collects bound test methods, with their fixtures and marks."""

    seen: typing.ClassVar[list[int]] = []

    @pytest.fixture
    def number(self) -> int:
        return 3

    @opero
    def test_a_bound_test_method_receives_fixtures(self, number: int, tmp_path: Any) -> None:
        assert isinstance(self, TestInAClass)
        assert number == 3
        assert tmp_path.is_dir()

    @pytest.mark.parametrize("value", [1, 2])
    @opero
    def test_a_bound_test_method_is_parametrized(self, value: int) -> None:
        self.seen.append(value)

    def test_each_parameter_was_passed(self) -> None:
        assert self.seen == [1, 2]


def test_abstract_methods_may_be_bound_in_either_order() -> None:
    class Base(abc.ABC):
        @opero
        @abc.abstractmethod
        def below(self) -> int: ...

        @abc.abstractmethod
        @opero
        def above(self) -> int: ...

        @opero
        @classmethod
        @abc.abstractmethod
        def of(cls) -> int: ...

    assert Base.__abstractmethods__ == {"below", "above", "of"}
    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]

    class Whole(Base):
        @opero
        def below(self) -> int:
            return 1

        def above(self) -> int:
            return 2

        @classmethod
        def of(cls) -> int:
            return 3

    whole = Whole()
    assert (whole.below(), whole.above(), whole.of()) == (1, 2, 3)


def test_a_methods_annotations_are_those_of_its_function() -> None:
    annotations = Client.plain.__annotations__
    assert type(vars(Client)["get_all"]).__annotations__ is not annotations  # asked before, as `type` keeps them then
    for method in (Client().get_all, Client.get_all, vars(Client)["get_all"]):
        assert method.__annotations__ == annotations


def test_singledispatchmethod_chooses_among_bound_methods() -> None:
    class Shows:
        @functools.singledispatchmethod
        @opero
        def show(self, value: object) -> str:
            return f"object {value}"

        @show.register
        @opero
        def _(self, value: int) -> str:
            return f"int {value}"

    assert (Shows().show("x"), Shows().show(1)) == ("object x", "int 1")


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    base: str

    @opero
    def get(self, path: str) -> str:
        return self.base + path


def test_dataclasses_with_slots_have_bound_methods() -> None:
    assert Slotted("a/").get("x") == "a/x"
    assert Slotted("a/").get.map(["x", "y"]) == ["a/x", "a/y"]
    assert [each.name for each in dataclasses.fields(Slotted)] == ["base"]
    assert pickle.loads(pickle.dumps(Slotted("a/").get))("x") == "a/x"


def test_the_members_of_an_enum_have_bound_methods() -> None:
    class Size(enum.Enum):
        SMALL = 1
        LARGE = 2

        @opero
        def times(self, factor: int) -> int:
            return int(self.value) * factor

    assert list(Size.__members__) == ["SMALL", "LARGE"]
    assert Size.LARGE.times(3) == 6


def test_pydantic_models_have_bound_methods_and_no_field_of_them() -> None:
    class Model(pydantic.BaseModel):
        base: str

        @opero
        def get(self, path: str) -> str:
            return self.base + path

    assert list(Model.model_fields) == ["base"]
    assert Model(base="a/").get("x") == "a/x"


def test_a_class_with_bound_methods_satisfies_a_protocol() -> None:
    @typing.runtime_checkable
    class Gets(typing.Protocol):
        def get(self, path: str) -> str: ...

    assert isinstance(Client(), Gets)

    @typing.runtime_checkable
    class GetsBound(typing.Protocol):
        @opero
        def get(self, path: str) -> str: ...

    assert isinstance(Client(), GetsBound)
    assert not isinstance(object(), GetsBound)


def test_a_bound_method_may_be_a_property() -> None:
    class Lazy:
        @property
        @opero
        def value(self) -> int:
            return 1

        @functools.cached_property
        @opero
        def cached(self) -> int:
            return 2

    assert (Lazy().value, Lazy().cached) == (1, 2)


def test_attributes_of_a_method_are_set_on_its_function() -> None:
    class Marked:
        def get(self) -> int:
            return 1

    bound: Any = opero(Marked.get)
    bound.mark = "x"
    assert bound.__func__.mark == "x"
    Marked.get = bound  # type: ignore[method-assign]
    assert Marked().get.mark == Marked.get.mark == "x"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="set it on the function, .*Marked.get"):
        Marked().get.mark = "y"  # type: ignore[attr-defined]
    del bound.mark
    assert not hasattr(Marked.get, "mark")


def test_a_bound_method_that_is_stored_in_another_class_keeps_its_instance() -> None:
    class Other:
        get = Client("a/").get

    assert Other().get("x") == "a/x"


def test_weak_references_to_bound_methods_and_their_equality_are_those_of_methods() -> None:
    client = Client()
    assert client.get == client.get
    assert client.get != Client().get
    assert client.get != client.get_all
    assert {client.get: 1}[client.get] == 1
    assert client.get.__self__ is client
    assert client.get.__func__ is Client.get


def test_class_methods_are_mapped_for_their_class() -> None:
    assert [each.base for each in Client.of.map(["a", "b"])] == ["a", "b"]
    assert type(vars(Client)["of"].__func__) is types.FunctionType


# Names that others use


def test_lru_cache_above_a_bound_function_keeps_its_own_methods() -> None:
    calls: list[int] = []

    @functools.lru_cache
    @opero
    def double(number: int) -> int:
        calls.append(number)
        return number * 2

    assert double(1) == double(1) == 2
    assert double.cache_info().hits == 1
    double.cache_clear()
    assert double(1) == 2
    assert calls == [1, 1]


def test_lru_cache_below_a_bound_function_keeps_its_own_methods() -> None:
    @opero
    @functools.lru_cache
    def double(number: int) -> int:
        return number * 2

    assert double(1) == double(1) == 2
    assert double.cache_info().currsize == 1
    double.cache_clear()
    assert double.cache_info().currsize == 0
    with pytest.raises(ConfigError, match="has no cache"):
        double.cache_get(1)


def test_two_caches_of_one_function_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has a cache of its own, with cache_clear\(\), and its policy has"):

        @opero(cache=True)
        @functools.lru_cache
        def double(number: int) -> int:
            return number * 2


@pytest.mark.parametrize("name", ["stats", "map", "policy", "stream", "binding"])
def test_a_functions_own_attribute_is_not_replaced_in_silence(name: str) -> None:
    def function() -> None: ...

    setattr(function, name, "own")
    with pytest.raises(ConfigError, match=f"function has an attribute '{name}', .*: rename it, or put @opero below"):
        Policy(retry=1).apply(function)


def test_a_callable_object_with_a_method_of_that_name_is_refused() -> None:
    class Task:
        def __call__(self) -> None: ...
        def map(self) -> None: ...

    with pytest.raises(ConfigError, match="Task has an attribute 'map'"):
        Policy(retry=1).apply(Task())
    assert Policy(retry=1).apply(mock.Mock(return_value=3))() == 3


def test_a_bound_function_may_be_bound_again() -> None:
    inner = opero(retries=1)(lambda number: number)
    outer = Policy(retry=2).apply(inner)
    assert outer.map([1, 2]) == [1, 2]
    assert (outer.policy.retry.retries, inner.policy.retry.retries) == (2, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("copying", ["wraps", "copy", "update_wrapper"])
def test_another_decorator_does_not_take_over_attributes_of_a_bound_function(copying: str) -> None:
    @opero(cache=True)
    def double(number: int) -> int:
        return number * 2

    double.own = "mine"  # type: ignore[attr-defined]

    def checked(number: int) -> int:
        return double(number)

    outer: Any = checked
    if copying == "copy":
        checked.__dict__ = double.__dict__.copy()
    elif copying == "wraps":
        outer = functools.wraps(double)(checked)
    else:
        outer = functools.update_wrapper(checked, double)
    assert outer(2) == 4
    assert outer.own == "mine"
    for name in ("map", "stream", "stats", "policy", "binding", "cache_clear", "cache_get"):
        assert hasattr(double, name)
        assert name in dir(double)
        assert not hasattr(outer, name), name


# What cannot be bound


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        (property(lambda self: 1), "put @opero below @property"),
        (functools.cached_property(lambda self: 1), "put @opero below @cached_property"),
        (functools.partialmethod(print), r"put @opero on the function that partialmethod\(\) is given"),
        (functools.singledispatchmethod(print), "put @opero below @singledispatchmethod"),
    ],
)
def test_what_cannot_be_bound_is_refused_with_the_order_that_works(value: Any, cure: str) -> None:
    with pytest.raises(ConfigError, match=f"of type {type(value).__name__}: it is not callable; {cure}"):
        opero(value)


@pytest.mark.parametrize("decorate", [opero, opero(retries=1)])
def test_a_decorated_class_is_refused_since_it_would_be_no_class_any_more(decorate: Any) -> None:
    with pytest.raises(ConfigError, match="@opero cannot decorate the class Client.*: decorate its methods"):
        decorate(Client)
    assert Policy(retry=1).apply(Client)("a").base == "a"
    assert [each.base for each in opmap(Client)(["a", "b"])] == ["a", "b"]


def test_a_context_manager_is_bound_below_its_decorator() -> None:
    failures = [ConnectionError()]

    @contextlib.contextmanager
    @opero(clock=VirtualClock())
    def connected(host: str) -> Iterator[str]:
        if failures:
            raise failures.pop()
        yield host

    with connected("a") as host:
        assert host == "a"
    assert not failures
    for decorate in (contextlib.contextmanager, contextlib.asynccontextmanager):
        with pytest.raises(
            ConfigError, match=f"connects only makes a context manager.*: put @opero below @{decorate.__name__}"
        ):

            @opero
            @decorate
            def connects() -> Iterator[None]:
                yield
