"""What `@opero` and `Policy.apply` make of a function."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from opero.policies.bound_types.carried import Carries

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
    from typing import Literal

    from opero.values import Progress

    StrPath = str | os.PathLike[str]
    Shown = bool | Literal["auto"] | Callable[[Progress], object] | None

__all__ = ["AsyncBound", "Bound"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")


class Bound(Carries, Generic[P, R_co]):
    """A sync function, or a generator function of either kind, under a policy."""

    @abstractmethod
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __get__(  # type: ignore[misc]
        self: Callable[Concatenate[type[S], Q], U], instance: S | None, owner: type[S]
    ) -> Bound[Q, U]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> Bound[P, R_co]: ...
    @overload
    def __get__(self: Callable[Concatenate[S, Q], U], instance: S, owner: Any = None) -> Bound[Q, U]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> Bound[P, R_co]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...

    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], list[U]], items: Iterable[T], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> list[U]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], U], items: Iterable[T], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> list[U]: ...
    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], list[U]],
        items: Iterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> list[U]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], U],
        items: Iterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> list[U]: ...
    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], list[U]],
        items: Iterable[T],
        /,
        *args: Any,
        progress: Shown,
        **kwargs: Any,
    ) -> list[U]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], U], items: Iterable[T], /, *args: Any, progress: Shown, **kwargs: Any
    ) -> list[U]: ...
    @abstractmethod
    def map(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call it for every item, in parallel; further arguments go to every call.

        Args:
            items: any iterable.
            journal: a file in which finished items are recorded, and those of an earlier run found.
            failed_only: run only what the journal has as failed.
            progress: as `ParallelPolicy.progress`, or what to call with each `Progress`.
        """

    @overload
    def stream(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], list[U]], items: Iterable[T], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Generator[U, None, None]: ...
    @overload
    def stream(
        self: Callable[Concatenate[T, Q], U], items: Iterable[T], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Generator[U, None, None]: ...
    @overload
    def stream(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], list[U]],
        items: Iterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> Generator[U, None, None]: ...
    @overload
    def stream(
        self: Callable[Concatenate[T, Q], U],
        items: Iterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> Generator[U, None, None]: ...
    @overload
    def stream(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], list[U]],
        items: Iterable[T],
        /,
        *args: Any,
        progress: Shown,
        **kwargs: Any,
    ) -> Generator[U, None, None]: ...
    @overload
    def stream(
        self: Callable[Concatenate[T, Q], U], items: Iterable[T], /, *args: Any, progress: Shown, **kwargs: Any
    ) -> Generator[U, None, None]: ...
    @abstractmethod
    def stream(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `map`, but results come one by one as they are ready, and items are read as they are needed."""

    @abstractmethod
    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None:
        """The cached result of such a call, or None."""

    @abstractmethod
    def cache_set(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Keep a value as the result of such a call; whether it could be kept."""

    @abstractmethod
    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the cached result of such a call."""


class AsyncBound(Carries, Generic[P, R_co]):
    """An async function under a policy."""

    @abstractmethod
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    @overload
    def __get__(  # type: ignore[misc]
        self: Callable[Concatenate[type[S], Q], Coroutine[Any, Any, U]], instance: S | None, owner: type[S]
    ) -> AsyncBound[Q, U]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> AsyncBound[P, R_co]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, U]], instance: S, owner: Any = None
    ) -> AsyncBound[Q, U]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> AsyncBound[P, R_co]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...

    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, U]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, U]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @overload
    def map(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        progress: Shown,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, U]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        progress: Shown,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @abstractmethod
    def map(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call it for every item, in parallel; further arguments go to every call.

        Args:
            items: any iterable.
            journal: a file in which finished items are recorded, and those of an earlier run found.
            failed_only: run only what the journal has as failed.
            progress: as `ParallelPolicy.progress`, or what to call with each `Progress`.
        """

    @overload
    def stream(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> AsyncGenerator[U, None]: ...
    @overload
    def stream(
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, U]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> AsyncGenerator[U, None]: ...
    @overload
    def stream(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> AsyncGenerator[U, None]: ...
    @overload
    def stream(
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, U]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> AsyncGenerator[U, None]: ...
    @overload
    def stream(  # type: ignore[misc]
        self: Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        progress: Shown,
        **kwargs: Any,
    ) -> AsyncGenerator[U, None]: ...
    @overload
    def stream(
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, U]],
        items: Iterable[T] | AsyncIterable[T],
        /,
        *args: Any,
        progress: Shown,
        **kwargs: Any,
    ) -> AsyncGenerator[U, None]: ...
    @abstractmethod
    def stream(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `map`, but results come one by one as they are ready, and items are read as they are needed."""

    @abstractmethod
    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None:
        """The cached result of such a call, or None."""

    @abstractmethod
    def cache_set(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Keep a value as the result of such a call; whether it could be kept."""

    @abstractmethod
    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the cached result of such a call."""
