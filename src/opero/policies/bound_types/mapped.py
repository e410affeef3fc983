"""What `@opmap` makes of a function of one item, or of a list of items."""

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

__all__ = ["AsyncMapped", "Mapped"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
T_contra = TypeVar("T_contra", contravariant=True)


class Mapped(Carries, Generic[T_contra, P, R_co]):
    """What `@opmap` makes of a function of one item, or of a list of items: a function of many."""

    @overload
    def __call__(self, items: Iterable[T_contra], /, *args: P.args, **kwargs: P.kwargs) -> list[R_co]: ...
    @overload
    def __call__(
        self,
        items: Iterable[T_contra],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> list[R_co]: ...
    @overload
    def __call__(self, items: Iterable[T_contra], /, *args: Any, progress: Shown, **kwargs: Any) -> list[R_co]: ...
    @abstractmethod
    def __call__(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call it for every item, in parallel; further arguments go to every call.

        Args:
            items: any iterable.
            journal: a file in which finished items are recorded, and those of an earlier run found.
            failed_only: run only what the journal has as failed.
            progress: as `ParallelPolicy.progress`, or what to call with each `Progress`.
        """

    @overload
    def map(self, items: Iterable[T_contra], /, *args: P.args, **kwargs: P.kwargs) -> list[R_co]: ...
    @overload
    def map(
        self,
        items: Iterable[T_contra],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> list[R_co]: ...
    @overload
    def map(self, items: Iterable[T_contra], /, *args: Any, progress: Shown, **kwargs: Any) -> list[R_co]: ...
    @abstractmethod
    def map(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The same as calling it."""

    @overload
    def stream(
        self, items: Iterable[T_contra], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[R_co, None, None]: ...
    @overload
    def stream(
        self,
        items: Iterable[T_contra],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> Generator[R_co, None, None]: ...
    @overload
    def stream(
        self, items: Iterable[T_contra], /, *args: Any, progress: Shown, **kwargs: Any
    ) -> Generator[R_co, None, None]: ...
    @abstractmethod
    def stream(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `map`, but results come one by one as they are ready, and items are read as they are needed."""

    # A method's first parameter was taken for its item; here the instance takes its place, and the next is the item.
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[type[S]], list[T], Q], list[list[U]]], instance: S | None, owner: type[S]
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[type[S]], T, Q], list[U]], instance: S | None, owner: type[S]
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> Mapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[S], list[T], Q], list[list[U]]], instance: S, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[S], T, Q], list[U]], instance: S, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> Mapped[T_contra, P, R_co]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...


class AsyncMapped(Carries, Generic[T_contra, P, R_co]):
    """What `@opmap` makes of an async function of one item, or of a list of items: an async function of many."""

    @overload
    def __call__(
        self, items: Iterable[T_contra] | AsyncIterable[T_contra], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, list[R_co]]: ...
    @overload
    def __call__(
        self,
        items: Iterable[T_contra] | AsyncIterable[T_contra],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, list[R_co]]: ...
    @overload
    def __call__(
        self, items: Iterable[T_contra] | AsyncIterable[T_contra], /, *args: Any, progress: Shown, **kwargs: Any
    ) -> Coroutine[Any, Any, list[R_co]]: ...
    @abstractmethod
    def __call__(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call it for every item, in parallel; further arguments go to every call.

        Args:
            items: any iterable.
            journal: a file in which finished items are recorded, and those of an earlier run found.
            failed_only: run only what the journal has as failed.
            progress: as `ParallelPolicy.progress`, or what to call with each `Progress`.
        """

    @overload
    def map(
        self, items: Iterable[T_contra] | AsyncIterable[T_contra], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, list[R_co]]: ...
    @overload
    def map(
        self,
        items: Iterable[T_contra] | AsyncIterable[T_contra],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, list[R_co]]: ...
    @overload
    def map(
        self, items: Iterable[T_contra] | AsyncIterable[T_contra], /, *args: Any, progress: Shown, **kwargs: Any
    ) -> Coroutine[Any, Any, list[R_co]]: ...
    @abstractmethod
    def map(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """The same as calling it."""

    @overload
    def stream(
        self, items: Iterable[T_contra] | AsyncIterable[T_contra], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[R_co, None]: ...
    @overload
    def stream(
        self,
        items: Iterable[T_contra] | AsyncIterable[T_contra],
        /,
        *args: Any,
        journal: StrPath,
        failed_only: bool = False,
        progress: Shown = None,
        **kwargs: Any,
    ) -> AsyncGenerator[R_co, None]: ...
    @overload
    def stream(
        self, items: Iterable[T_contra] | AsyncIterable[T_contra], /, *args: Any, progress: Shown, **kwargs: Any
    ) -> AsyncGenerator[R_co, None]: ...
    @abstractmethod
    def stream(self, items: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As `map`, but results come one by one as they are ready, and items are read as they are needed."""

    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[type[S]], list[T], Q], Coroutine[Any, Any, list[list[U]]]],
        instance: S | None,
        owner: type[S],
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[type[S]], T, Q], Coroutine[Any, Any, list[U]]],
        instance: S | None,
        owner: type[S],
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> AsyncMapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[S], list[T], Q], Coroutine[Any, Any, list[list[U]]]],
        instance: S,
        owner: Any = None,
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[S], T, Q], Coroutine[Any, Any, list[U]]], instance: S, owner: Any = None
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> AsyncMapped[T_contra, P, R_co]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...
