"""Methods of subclasses and protocols: what type checkers must accept. It is checked, and never run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar, assert_type

from opero import Bound, Stats, opero, opmap

T = TypeVar("T")
K = TypeVar("K")


class Base(ABC):
    @opero
    def get(self, key: int) -> str:
        return str(key)

    @opero(retries=2)
    async def get_async(self, key: int) -> str:
        return str(key)

    @opero(cache=True)
    def get_any(self, key: int) -> Any:
        return key

    @opero
    def keywords(self, *keys: int, **options: str) -> int:
        return len(keys)

    @opero
    def widened(self, key: int) -> str:
        return str(key)

    @opero
    def narrowed(self, key: int) -> object:
        return key

    @opero
    def chained(self, key: int) -> Self:
        return self

    @opero
    async def chained_async(self, key: int) -> Self:
        return self

    @opero
    def lines(self, key: int) -> Iterator[str]:
        yield str(key)

    @opero
    async def lines_async(self, key: int) -> AsyncIterator[str]:
        yield str(key)

    @opmap
    def load(self, key: int) -> str:
        return str(key)

    @opero
    @abstractmethod
    def abstract_below(self, key: int) -> str: ...

    @abstractmethod
    @opero
    def abstract_above(self, key: int) -> str: ...

    @opero
    @abstractmethod
    async def abstract_async(self, key: int) -> str: ...

    @classmethod
    @opero
    def build(cls, key: int) -> str:
        return str(key)

    @opero
    @classmethod
    def build_below(cls, key: int) -> str:
        return str(key)

    @classmethod
    @opero
    def build_self(cls, key: int) -> Self:
        return cls()

    @classmethod
    @opero
    async def build_self_async(cls, key: int) -> Self:
        return cls()

    @staticmethod
    @opero
    def parse(text: str) -> int:
        return int(text)

    @staticmethod
    @opero
    def parse_anything(text: Any) -> int:
        return int(text)

    @opero
    @staticmethod
    def parse_below(text: str) -> int:
        return int(text)


class Plain(Base):
    """Plain methods override decorated ones."""

    def get(self, key: int) -> str:
        return super().get(key)

    async def get_async(self, key: int) -> str:
        return await super().get_async(key)

    def get_any(self, key: int) -> Any:
        return key

    def keywords(self, *keys: int, **options: str) -> int:
        return len(keys)

    def widened(self, key: int, fresh: bool = False) -> str:
        return str(key)

    def narrowed(self, key: int) -> str:
        return str(key)

    def chained(self, key: int) -> Self:
        return self

    async def chained_async(self, key: int) -> Self:
        return self

    def lines(self, key: int) -> Iterator[str]:
        yield str(key)

    async def lines_async(self, key: int) -> AsyncIterator[str]:
        yield str(key)

    def abstract_below(self, key: int) -> str:
        return str(key)

    def abstract_above(self, key: int) -> str:
        return str(key)

    async def abstract_async(self, key: int) -> str:
        return str(key)

    @classmethod
    def build(cls, key: int) -> str:
        return str(key)

    @classmethod
    def build_below(cls, key: int) -> str:
        return str(key)

    @classmethod
    def build_self(cls, key: int) -> Self:
        return cls()

    @classmethod
    async def build_self_async(cls, key: int) -> Self:
        return cls()

    @staticmethod
    def parse(text: str) -> int:
        return int(text)

    @staticmethod
    def parse_anything(text: Any) -> int:
        return int(text)

    @staticmethod
    def parse_below(text: str) -> int:
        return int(text)


class Decorated(Base):
    """Decorated methods override decorated ones."""

    @opero
    def get(self, key: int) -> str:
        return super().get(key)

    @opero
    async def get_async(self, key: int) -> str:
        return await super().get_async(key)

    @opero
    def get_any(self, key: int) -> Any:
        return key

    @opero
    def keywords(self, *keys: int, **options: str) -> int:
        return len(keys)

    @opero
    def widened(self, key: int, fresh: bool = False) -> str:
        return str(key)

    @opero
    def narrowed(self, key: int) -> str:
        return str(key)

    @opero
    def chained(self, key: int) -> Self:
        return self

    @opero
    async def chained_async(self, key: int) -> Self:
        return self

    @opmap
    def load(self, key: int) -> str:
        return str(key)

    @opero
    def abstract_below(self, key: int) -> str:
        return str(key)

    @opero
    def abstract_above(self, key: int) -> str:
        return str(key)

    @opero
    async def abstract_async(self, key: int) -> str:
        return str(key)

    @classmethod
    @opero
    def build(cls, key: int) -> str:
        return str(key)

    @opero
    @classmethod
    def build_below(cls, key: int) -> str:
        return str(key)

    @classmethod
    @opero
    def build_self(cls, key: int) -> Self:
        return cls()

    @staticmethod
    @opero
    def parse(text: str) -> int:
        return int(text)


async def calls(base: Base, plain: Plain, decorated: Decorated) -> None:
    assert_type(base.get(1), str)
    assert_type(base.get.stats, Stats)
    assert_type(base.get.map([1]), list[str])
    assert_type(plain.get(1), str)
    assert_type(decorated.get(1), str)
    assert_type(decorated.get.map([1]), list[str])
    assert_type(await base.get_async(1), str)
    assert_type(await base.get_async.map([1]), list[str])
    assert_type(await plain.get_async(1), str)
    assert_type(await decorated.get_async(1), str)
    assert_type(base.get_any(1), Any)
    assert_type(base.get_any.stats, Stats)
    assert_type(base.keywords(1, 2, mode="x"), int)
    assert_type(decorated.widened(1, fresh=True), str)
    assert_type(base.chained(1), Base)
    assert_type(decorated.chained(1), Decorated)
    assert_type(decorated.chained(1).chained(2).get(3), str)
    assert_type(await base.chained_async(1), Base)
    assert_type(await decorated.chained_async(1), Decorated)
    assert_type(base.lines(1), Iterator[str])
    assert_type(base.lines_async(1), AsyncIterator[str])
    assert_type(base.load([1]), list[str])
    assert_type(decorated.load([1]), list[str])
    assert_type(base.abstract_below(1), str)
    assert_type(base.abstract_above(1), str)
    assert_type(await base.abstract_async(1), str)
    assert_type(base.build(1), str)
    assert_type(Base.build(1), str)
    assert_type(Base.build.map([1]), list[str])
    assert_type(Base.build_below(1), str)
    assert_type(Base.build_self(1), Base)
    assert_type(Decorated.build_self(1), Decorated)
    assert_type(Decorated.build_self.stats, Stats)
    assert_type(await Decorated.build_self_async(1), Decorated)
    assert_type(base.parse("1"), int)
    assert_type(Base.parse("1"), int)
    assert_type(Base.parse.map(["1"]), list[int])
    assert_type(base.parse_anything("1"), int)
    assert_type(Base.parse_anything("1"), int)
    assert_type(base.parse_below("1"), int)
    assert_type(Base.get(base, 1), str)
    assert_type(Base.chained.stats, Stats)


# Plain base methods, overridden by decorated ones: accepted by mypy. For pyright see the guide.


class PlainBase(ABC):
    def get(self, key: int) -> str:
        return str(key)

    @abstractmethod
    async def get_async(self, key: int) -> str: ...


class DecoratedChild(PlainBase):
    @opero
    def get(self, key: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(key)

    @opero(retries=2)
    async def get_async(self, key: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(key)


def calls_child(child: DecoratedChild) -> None:
    assert_type(child.get(1), str)
    assert_type(child.get.stats, Stats)


# Protocols


class Gets(Protocol):
    def get(self, key: int) -> str: ...

    async def get_async(self, key: int) -> str: ...


class GetsDecorated(Protocol):
    @opero
    def get(self, key: int) -> str: ...

    @opero
    async def get_async(self, key: int) -> str: ...


class PlainService:
    def get(self, key: int) -> str:
        return str(key)

    async def get_async(self, key: int) -> str:
        return str(key)


def takes(gets: Gets, decorated: GetsDecorated) -> None:
    as_callable: Callable[[int], str] = decorated.get
    assert_type(as_callable(1), str)


def gives(base: Base, plain: Plain, child: DecoratedChild, service: PlainService) -> None:
    takes(base, base)
    takes(plain, plain)
    takes(child, child)
    takes(service, service)
    bound: Bound[[int], str] = base.get
    bound_async: Bound[[int], Coroutine[Any, Any, str]] = base.get_async
    assert_type(bound.map([1]), list[str])
    assert_type(bound_async.stats, Stats)


# Generic classes


class Store(Generic[K, T]):
    @opero
    def get(self, key: K) -> T | None:
        return None

    @opero
    async def get_async(self, key: K) -> list[T]:
        return []

    @opero
    def same(self, key: T) -> T:
        return key

    @opero
    def any_of(self, key: K) -> Any:
        return key

    @opero
    def chained(self, key: K) -> Self:
        return self

    @opmap
    def load(self, key: K) -> list[T]:
        return []


class PlainStore(Store[K, T]):
    def get(self, key: K) -> T | None:
        return None

    async def get_async(self, key: K) -> list[T]:
        return []


class IntStore(Store[int, bytes]):
    def get(self, key: int) -> bytes | None:
        return None

    @opero
    async def get_async(self, key: int) -> list[bytes]:
        return []


async def uses_stores(store: Store[int, bytes], plain: PlainStore[int, bytes], ints: IntStore) -> None:
    assert_type(store.get(1), bytes | None)
    assert_type(store.get.map([1]), list[bytes | None])
    assert_type(await store.get_async(1), list[bytes])
    assert_type(store.same(b""), bytes)
    assert_type(store.any_of(1), Any)
    assert_type(store.chained(1), Store[int, bytes])
    assert_type(store.load([1]), list[list[bytes]])
    assert_type(plain.get(1), bytes | None)
    assert_type(ints.get(1), bytes | None)
    assert_type(await ints.get_async(1), list[bytes])
