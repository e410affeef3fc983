"""The types of bound functions, for type checkers and readers. At run time a bound function is a plain function.

They are nominal classes and no protocols, as their descriptors tell methods, class methods and static methods apart by
the function's first parameter: `self: Callable[...]` there is narrower than the class, which type checkers remark upon
and then do as meant. An ABC's methods may be empty, and nobody can make an instance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable

    from opero.binding import Binding
    from opero.cache.clearing import CacheInfo
    from opero.policies.policy import Policy
    from opero.stats import Stats

__all__ = ["AsyncBound", "AsyncMapped", "Bound", "Mapped"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
T_contra = TypeVar("T_contra", contravariant=True)


class _Carries(ABC):
    """What every bound function carries."""

    __name__: str
    __qualname__: str
    __module__: str
    __wrapped__: Callable[..., Any]

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """The effective policy."""

    @property
    @abstractmethod
    def stats(self) -> Stats:
        """Counts of what it has done so far."""

    @property
    @abstractmethod
    def binding(self) -> Binding:
        """The function under its policy, live: its state, its circuit breaker."""

    @abstractmethod
    def cache_clear(self, *, tags: str | Collection[str] | None = None) -> None:
        """Forget every cached result, or those of some groups (see `CachePolicy.tags`)."""

    @abstractmethod
    def cache_info(self) -> CacheInfo:
        """Hits and misses, how many results there are, and how many have been evicted."""


class Bound(_Carries, Generic[P, R_co]):
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
    @abstractmethod
    def map(self, items: Iterable[Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call it for every item, in parallel; further arguments go to every call."""

    @abstractmethod
    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None:
        """The cached result of such a call, or None."""

    @abstractmethod
    def cache_set(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Keep a value as the result of such a call; whether it could be kept."""

    @abstractmethod
    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the cached result of such a call."""


class AsyncBound(_Carries, Generic[P, R_co]):
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
        items: Iterable[T],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @overload
    def map(
        self: Callable[Concatenate[T, Q], Coroutine[Any, Any, U]],
        items: Iterable[T],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, list[U]]: ...
    @abstractmethod
    def map(self, items: Iterable[Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call it for every item, in parallel; further arguments go to every call."""

    @abstractmethod
    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None:
        """The cached result of such a call, or None."""

    @abstractmethod
    def cache_set(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Keep a value as the result of such a call; whether it could be kept."""

    @abstractmethod
    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the cached result of such a call."""


class Mapped(_Carries, Generic[T_contra, P, R_co]):
    """What `@opmap` makes of a function of one item, or of a list of items: a function of many."""

    @abstractmethod
    def __call__(self, items: Iterable[T_contra], /, *args: P.args, **kwargs: P.kwargs) -> list[R_co]: ...

    @abstractmethod
    def map(self, items: Iterable[T_contra], /, *args: P.args, **kwargs: P.kwargs) -> list[R_co]:
        """The same as calling it."""

    # A method's first parameter was taken for its item; here the instance takes its place, and the next is the item.
    @overload
    def __get__(  # type: ignore[misc]
        self: Callable[Concatenate[Iterable[type[S]], list[T], Q], list[list[U]]], instance: S | None, owner: type[S]
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[Iterable[type[S]], T, Q], list[U]], instance: S | None, owner: type[S]
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> Mapped[T_contra, P, R_co]: ...
    @overload
    def __get__(  # type: ignore[misc]
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


class AsyncMapped(_Carries, Generic[T_contra, P, R_co]):
    """What `@opmap` makes of an async function of one item, or of a list of items: an async function of many."""

    @abstractmethod
    def __call__(
        self, items: Iterable[T_contra], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, list[R_co]]: ...

    @abstractmethod
    def map(self, items: Iterable[T_contra], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, list[R_co]]:
        """The same as calling it."""

    @overload
    def __get__(  # type: ignore[misc]
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
    def __get__(  # type: ignore[misc]
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
