"""Bound functions as values, and beside other decorators: what type checkers must accept. It is never run."""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar, assert_type, overload

from opero import AsyncBound, Bound, Mapped, Policy, Registry, RetryPolicy, Stats, opero, opmap

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


@opero(retries=2)
def fetch(url: str, timeout: float = 1.0) -> bytes:
    return url.encode()


@opero
async def fetch_async(url: str) -> bytes:
    return url.encode()


@opmap
def resize(path: str, width: int = 100) -> bytes:
    return path.encode()


# Arguments, containers and attributes


def calls(function: Callable[[str], bytes]) -> bytes:
    return function("/")


def calls_generic(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return function(*args, **kwargs)


async def awaits(function: Callable[[str], Awaitable[T]]) -> T:
    return await function("/")


def with_stats(function: Bound[..., object]) -> Stats:
    return function.stats


handlers: dict[str, Callable[[str], bytes]] = {"fetch": fetch}
handlers_bound: Mapping[str, Bound[[str], bytes]] = {"fetch": fetch}
handlers_async: list[AsyncBound[[str], bytes]] = [fetch_async]
inferred = {"fetch": fetch, "again": fetch}

assert_type(calls(fetch), bytes)
assert_type(calls_generic(fetch, "/", timeout=2.0), bytes)
assert_type(with_stats(fetch), Stats)
assert_type(with_stats(fetch_async), Stats)
assert_type(handlers["fetch"]("/"), bytes)
assert_type(handlers_bound["fetch"].map(["/"]), list[bytes])
assert_type(inferred["fetch"].stats, Stats)
assert_type(fetch.__name__, str)
assert_type(fetch.__qualname__, str)
assert_type(fetch.__module__, str)
assert_type(fetch.__doc__, str | None)
assert_type(list(map(fetch, ["/"])), list[bytes])
assert_type(sorted(["/"], key=fetch), list[str])
partial_of_bound = functools.partial(fetch, timeout=2.0)
assert_type(partial_of_bound("/"), bytes)
bound_partial = opero(functools.partial(fetch, "/"))
assert_type(bound_partial(), bytes)
assert_type(bound_partial.stats, Stats)


async def uses_async() -> None:
    assert_type(await awaits(fetch_async), bytes)
    assert_type(await asyncio.gather(*map(fetch_async, ["/"])), list[bytes])
    assert_type(await asyncio.gather(fetch_async("/"), fetch_async("/")), tuple[bytes, bytes])
    assert_type(await asyncio.wait_for(fetch_async("/"), 1), bytes)
    task = asyncio.create_task(fetch_async("/"))
    assert_type(await task, bytes)
    async with asyncio.TaskGroup() as group:
        assert_type(await group.create_task(fetch_async("/")), bytes)
    assert_type(await asyncio.to_thread(fetch, "/"), bytes)


# Fields of dataclasses


@dataclass
class Client:
    get: Callable[[str], bytes] = fetch
    bound: Bound[[str], bytes] = fetch
    handlers: dict[str, Bound[[str], bytes]] = field(default_factory=lambda: {"fetch": fetch})

    @property
    @opero
    def name(self) -> str:
        return "x"

    @functools.cached_property
    @opero
    def size(self) -> int:
        return 1


client = Client(get=fetch, bound=fetch)
assert_type(client.get("/"), bytes)
assert_type(client.bound("/"), bytes)
assert_type(client.bound.stats, Stats)
assert_type(client.handlers["fetch"]("/"), bytes)
assert_type(client.name, str)
assert_type(client.size, int)


# Decorators with a ParamSpec, above and below


def logged(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return call


def traced(function: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    return function


def resilient(function: Callable[P, R]) -> Bound[P, R]:
    return opero(retries=5)(function)


def resilient_async(function: Callable[P, Coroutine[Any, Any, R]]) -> AsyncBound[P, R]:
    return opero(retries=5)(function)


@opero
@logged
def logged_below(url: str) -> int:
    return 1


@logged
@opero
def logged_above(url: str) -> int:
    return 1


@resilient
def through_resilient(url: str) -> int:
    return 1


@resilient_async
async def through_resilient_async(url: str) -> int:
    return 1


assert_type(logged_below("/"), int)
assert_type(logged_below(url="/"), int)
assert_type(logged_below.stats, Stats)
assert_type(logged_above("/"), int)
assert_type(through_resilient(url="/"), int)
assert_type(through_resilient.stats, Stats)


class Decorating(ABC):
    @opero
    @logged
    def below(self, key: int) -> str:
        return ""

    @logged
    @opero
    def above(self, key: int) -> str:
        return ""

    @traced
    @opero
    def traced_above(self, key: int) -> str:
        return ""

    @opero
    @traced
    def traced_below(self, key: int) -> str:
        return ""

    @opero
    @opero(retries=2)
    def twice(self, key: int) -> str:
        return ""

    @Policy(retry=2).apply
    def applied(self, key: int) -> str:
        return ""

    @RetryPolicy().apply
    async def applied_async(self, key: int) -> str:
        return ""

    @abstractmethod
    @opero
    def abstract(self, key: int) -> str: ...

    def plain(self, key: int) -> str:
        return ""

    @functools.cached_property
    def bound_later(self) -> Bound[[int], str]:
        return opero(self.plain)


async def uses_decorating(value: Decorating) -> None:
    assert_type(value.below(1), str)
    assert_type(value.below(key=1), str)
    assert_type(value.below.stats, Stats)
    assert_type(value.above(1), str)
    assert_type(value.traced_above(1), str)
    assert_type(value.traced_below(1), str)
    assert_type(value.twice(1), str)
    assert_type(value.applied(1), str)
    assert_type(value.applied.map([1]), list[str])
    assert_type(await value.applied_async(1), str)
    assert_type(value.bound_later(1), str)
    assert_type(value.bound_later.stats, Stats)
    assert_type(opero(value.plain).map([1]), list[str])
    assert_type(await through_resilient_async("/"), int)


# Overloads: the signatures are kept, the attributes are not


@overload
def parse(value: str) -> int: ...
@overload
def parse(value: bytes) -> float: ...
@opero
def parse(value: str | bytes) -> int | float:
    return 1


assert_type(parse("1"), int)
assert_type(parse(b"1"), float)


# Functions of any arguments, and callables that are no functions


@opero
def of_any_arguments(*args: Any, **kwargs: Any) -> int:
    return 1


@opero
def of_some_arguments(url: str, *args: Any, **kwargs: Any) -> int:
    return 1


class Callback:
    def __call__(self, url: str) -> bytes:
        return b""


def takes_callables(anything: Callable[..., int], function: Callable[[int], str], method: Decorating) -> None:
    assert_type(opero(anything)(1, x=2), int)
    assert_type(opero(anything).stats, Stats)
    assert_type(opero(function)(1), str)
    assert_type(opero(function).map([1]), list[str])
    assert_type(opero(method.below)(1), str)
    assert_type(opero(method.plain)(key=1), str)
    assert_type(opero(Callback())("/"), bytes)
    assert_type(opero(len)([1]), int)
    assert_type(opero(lambda: 1)(), int)


assert_type(of_any_arguments(1, x=2), int)
assert_type(of_any_arguments.stats, Stats)
assert_type(of_some_arguments("/", 2, x=2), int)
assert_type(of_some_arguments.stats, Stats)
assert_type(opero(Client)(get=fetch), Client)


# Generators of all kinds, mapped and streamed


@opero
def lines(path: str) -> Iterator[str]:
    yield path


@opero
async def lines_async(path: str) -> AsyncIterator[str]:
    yield path


assert_type(next(lines("/")), str)
mapped: Mapped[str, [int], bytes] = resize
as_callable: Callable[[list[str]], list[bytes]] = resize


async def uses_generators() -> None:
    async for line in lines_async("/"):
        assert_type(line, str)
    assert_type(await anext(lines_async("/")), str)


# The same without decorators


def of_one(item: str, scale: float = 1.0) -> int:
    return int(scale)


assert_type(Registry({}).bind(of_one, "api")("a", scale=2.0), int)
assert_type(Policy().apply(of_one)(item="a"), int)
assert_type(opero(policy=Policy())(of_one)(item="a"), int)
assert_type(opero(policy="api")(of_one).map(["a"], scale=1.0), list[int])
