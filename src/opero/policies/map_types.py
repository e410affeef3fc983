"""The types of what maps a bound function, such as `f.map`, for type checkers and readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, final, overload

if TYPE_CHECKING:
    import os
    from typing import Literal

    from opero.policies.bound_types import Bound
    from opero.values import Progress

    Owner = type["Bound[Concatenate[T, P], Any]"] | None  # None: else pyright gives up on results with Any
    StrPath = str | os.PathLike[str]
    ShowProgress = bool | Literal["auto"] | Callable[[Progress], object] | None

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Items_contra = TypeVar("Items_contra", contravariant=True)

AnyItems = Iterable[T] | AsyncIterable[T]


@final
class OnlyAny:
    """A type that no function returns. Where it is the result, only functions annotated `-> Any` match.

    Their overload comes first, because `Any` also matches the `Coroutine` of the overloads for async functions.
    """


class ItemFunction(Protocol[T_contra, R_co]):
    """A function whose first parameter is an item."""

    def __call__(self, item: T_contra, /, *args: Any, **kwargs: Any) -> R_co: ...


class BatchFunction(Protocol[T, R]):
    """A function that takes a list of items and returns a list of results."""

    def __call__(self, items: list[T], /, *args: Any, **kwargs: Any) -> list[R]: ...


class AsyncBatchFunction(Protocol[T, R]):
    """An async function that takes a list of items and returns a list of results."""

    def __call__(self, items: list[T], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, list[R]]: ...


class MapFunction(ABC, Generic[Items_contra, P, R_co]):
    """A function that calls another for many items: what `f.map` and `f.stream` are."""

    @overload
    def __call__(self, items: Items_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(
        self,
        items: Items_contra,
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: ShowProgress = None,
        **kwargs: Any,
    ) -> R_co: ...
    @overload
    def __call__(self, items: Items_contra, /, *args: Any, progress: ShowProgress, **kwargs: Any) -> R_co: ...
    @abstractmethod
    def __call__(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function for every item, in parallel; further arguments go to every call.

        Args:
            items: any iterable; for an async function also an async iterable.
            journal: a file that records finished items, so that a later run skips them.
            failed_only: run only the items that the journal records as failed.
            progress: as `ParallelPolicy.progress`, or a callable that receives each `Progress`.
        """


Map = MapFunction[Iterable[T], P, list[R]]
AsyncMap = MapFunction[AnyItems[T], P, Coroutine[Any, Any, list[R]]]
Stream = MapFunction[Iterable[T], P, Generator[R, None, None]]
AsyncStream = MapFunction[AnyItems[T], P, AsyncGenerator[R, None]]


class MapAttribute(Protocol):
    """The type of `Bound.map`, which follows from the function that is bound.

    `instance` gives the types of items and results, `owner` the parameters after the first. For a single
    `Callable[Concatenate[T, P], R]`, which would give all of them, mypy --strict refuses a function with `**kwargs`.
    """

    @overload
    def __get__(self, instance: ItemFunction[T, OnlyAny], owner: Owner[T, P]) -> Map[T, P, Any]: ...
    @overload
    def __get__(self, instance: AsyncBatchFunction[T, R], owner: Owner[list[T], P]) -> AsyncMap[T, P, R]: ...
    @overload
    def __get__(self, instance: ItemFunction[T, Coroutine[Any, Any, R]], owner: Owner[T, P]) -> AsyncMap[T, P, R]: ...
    @overload
    def __get__(self, instance: BatchFunction[T, R], owner: Owner[list[T], P]) -> Map[T, P, R]: ...
    @overload
    def __get__(self, instance: ItemFunction[T, R], owner: Owner[T, P]) -> Map[T, P, R]: ...


class StreamAttribute(Protocol):
    """The type of `Bound.stream`: as `MapAttribute`, but the results come from a generator."""

    @overload
    def __get__(self, instance: ItemFunction[T, OnlyAny], owner: Owner[T, P]) -> Stream[T, P, Any]: ...
    @overload
    def __get__(self, instance: AsyncBatchFunction[T, R], owner: Owner[list[T], P]) -> AsyncStream[T, P, R]: ...
    @overload
    def __get__(
        self, instance: ItemFunction[T, Coroutine[Any, Any, R]], owner: Owner[T, P]
    ) -> AsyncStream[T, P, R]: ...
    @overload
    def __get__(self, instance: BatchFunction[T, R], owner: Owner[list[T], P]) -> Stream[T, P, R]: ...
    @overload
    def __get__(self, instance: ItemFunction[T, R], owner: Owner[T, P]) -> Stream[T, P, R]: ...


StarMap = MapFunction[Iterable[Iterable[Any]], ..., list[R]]
AsyncStarMap = MapFunction[AnyItems[Iterable[Any]], ..., Coroutine[Any, Any, list[R]]]
StarStream = MapFunction[Iterable[Iterable[Any]], ..., Generator[R, None, None]]
AsyncStarStream = MapFunction[AnyItems[Iterable[Any]], ..., AsyncGenerator[R, None]]


class AnyFunction(Protocol[R_co]):
    """A function with any parameters."""

    def __call__(self, *args: Any, **kwargs: Any) -> R_co: ...


class StarMapAttribute(Protocol):
    """The type of `Bound.starmap`. An item may have any number of arguments: what it consists of is not checked."""

    @overload
    def __get__(self, instance: AnyFunction[OnlyAny], owner: Any = None) -> StarMap[Any]: ...
    @overload
    def __get__(self, instance: AnyFunction[Coroutine[Any, Any, R]], owner: Any = None) -> AsyncStarMap[R]: ...
    @overload
    def __get__(self, instance: AnyFunction[R], owner: Any = None) -> StarMap[R]: ...


class StarStreamAttribute(Protocol):
    """The type of `Bound.starstream`: as `StarMapAttribute`, but the results come from a generator."""

    @overload
    def __get__(self, instance: AnyFunction[OnlyAny], owner: Any = None) -> StarStream[Any]: ...
    @overload
    def __get__(self, instance: AnyFunction[Coroutine[Any, Any, R]], owner: Any = None) -> AsyncStarStream[R]: ...
    @overload
    def __get__(self, instance: AnyFunction[R], owner: Any = None) -> StarStream[R]: ...
