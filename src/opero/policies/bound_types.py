"""The types of bound functions, for type checkers and readers. At run time a bound function is a plain function.

`Bound` and `Mapped` are nominal classes, not protocols: their `__get__` tells instance methods, class methods and
static methods apart by the type of the function's first parameter. They are abstract and cannot be instantiated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar, final, overload

if TYPE_CHECKING:
    import os
    from collections.abc import Collection
    from typing import Literal

    from opero.observe.stats import Stats
    from opero.policies.policy import Policy
    from opero.values import CacheInfo, Progress

    StrPath = str | os.PathLike[str]
    ShowProgress = bool | Literal["auto"] | Callable[[Progress], object] | None

__all__ = ["AsyncBound", "AsyncMapped", "Bound", "Mapped"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
U = TypeVar("U")
Items_contra = TypeVar("Items_contra", contravariant=True)

AnyItems = Iterable[T] | AsyncIterable[T]


# Which functions an overload accepts


@final
class OnlyAny:
    """The type that no function returns: `Callable[P, OnlyAny]` accepts only functions annotated `-> Any`.

    An overload for them comes first, because `Any` also matches the `Coroutine` of the overloads for async functions.
    """


class Batch(Protocol[T, P, R]):
    """A function that takes a list of items and returns a list of results."""

    def __call__(self, items: list[T], /, *args: P.args, **kwargs: P.kwargs) -> list[R]: ...


class AsyncBatch(Protocol[T, P, R]):
    """An async function that takes a list of items and returns a list of results."""

    def __call__(self, items: list[T], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, list[R]]: ...


# What every bound function carries


class CircuitBreakerControl(Protocol):
    """A live circuit breaker: its state, and manual control of it."""

    @property
    def state(self) -> str:
        """The current state: "closed", "open", "half_open", "forced_open" or "forced_closed"."""

    def force_open(self) -> None:
        """Reject every call until `reset`."""

    def force_closed(self) -> None:
        """Allow every call until `reset`."""

    def reset(self) -> None:
        """Close the circuit breaker and clear its counts."""


class LiveBinding(Protocol):
    """The live state of a bound function, as `f.binding` gives it."""

    @property
    def function(self) -> Callable[..., Any]:
        """The original function."""

    @property
    def name(self) -> str:
        """The function's qualified name."""

    @property
    def policy(self) -> Policy:
        """The effective policy, which is resolved now if it has not been needed yet."""

    @property
    def stats(self) -> Stats:
        """The counts of the function's calls."""

    @property
    def circuit_breaker(self) -> CircuitBreakerControl | None:
        """The circuit breaker, or None if the policy has none."""

    def swap(self, policy: Policy) -> None:
        """Replace the policy. Calls in progress finish under the old one; the counts continue."""


class BoundAttributes(ABC):
    """The attributes that every bound function has."""

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
        """The counts of the function's calls."""

    @property
    @abstractmethod
    def binding(self) -> LiveBinding:
        """The live state of the function, such as its circuit breaker."""

    @abstractmethod
    def cache_clear(self, *, tags: str | Collection[str] | None = None) -> None:
        """Delete all cached results, or only those with one of these tags (see `CachePolicy.tags`)."""

    @abstractmethod
    def cache_info(self) -> CacheInfo:
        """Hits, misses, the number of cached results, and evictions."""


# Maps


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


class MapAttribute(Protocol):
    """The type of `Bound.map`: items and further arguments come from the signature of the bound function."""

    @overload
    def __get__(
        self, instance: Callable[Concatenate[T, P], OnlyAny], owner: Any = None
    ) -> MapFunction[Iterable[T], P, list[Any]]: ...
    @overload
    def __get__(
        self, instance: AsyncBatch[T, P, R], owner: Any = None
    ) -> MapFunction[AnyItems[T], P, Coroutine[Any, Any, list[R]]]: ...
    @overload
    def __get__(
        self, instance: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], owner: Any = None
    ) -> MapFunction[AnyItems[T], P, Coroutine[Any, Any, list[R]]]: ...
    @overload
    def __get__(self, instance: Batch[T, P, R], owner: Any = None) -> MapFunction[Iterable[T], P, list[R]]: ...
    @overload
    def __get__(
        self, instance: Callable[Concatenate[T, P], R], owner: Any = None
    ) -> MapFunction[Iterable[T], P, list[R]]: ...


class StreamAttribute(Protocol):
    """The type of `Bound.stream`: as `MapAttribute`, with a generator of the results."""

    @overload
    def __get__(
        self, instance: Callable[Concatenate[T, P], OnlyAny], owner: Any = None
    ) -> MapFunction[Iterable[T], P, Generator[Any, None, None]]: ...
    @overload
    def __get__(
        self, instance: AsyncBatch[T, P, R], owner: Any = None
    ) -> MapFunction[AnyItems[T], P, AsyncGenerator[R, None]]: ...
    @overload
    def __get__(
        self, instance: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], owner: Any = None
    ) -> MapFunction[AnyItems[T], P, AsyncGenerator[R, None]]: ...
    @overload
    def __get__(
        self, instance: Batch[T, P, R], owner: Any = None
    ) -> MapFunction[Iterable[T], P, Generator[R, None, None]]: ...
    @overload
    def __get__(
        self, instance: Callable[Concatenate[T, P], R], owner: Any = None
    ) -> MapFunction[Iterable[T], P, Generator[R, None, None]]: ...


# What `@opero` and `Policy.apply` return


class Bound(BoundAttributes, Generic[P, R_co]):
    """A function under a policy. It has the signature of the function."""

    map: ClassVar[MapAttribute]
    """Call the function for every item, in parallel, and return the list of results."""

    stream: ClassVar[StreamAttribute]
    """As `map`, but yield each result as it is ready, and read the items as they are needed."""

    @abstractmethod
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __get__(  # type: ignore[misc]  # the first parameter of a class method
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
    def cache_get(self: AsyncBound[Q, U], *args: Q.args, **kwargs: Q.kwargs) -> U | None: ...
    @overload
    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None: ...
    @abstractmethod
    def cache_get(self, *args: Any, **kwargs: Any) -> Any:
        """Return the cached result of a call with these arguments, or None."""

    @abstractmethod
    def cache_set(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store a value as the result of a call with these arguments. Return whether it was stored."""

    @abstractmethod
    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Delete the cached result of a call with these arguments."""


AsyncBound = Bound[P, Coroutine[Any, Any, R]]


# What `@opmap` returns. The type of its items comes from the first parameter. For a method that is the instance, until
# `__get__` removes it and takes the type of the items from the next one.


class Mapped(BoundAttributes, MapFunction[Iterable[T_contra], P, list[R_co]], Generic[T_contra, P, R_co]):
    """A function of many items, made of a function of one item or of a list of items."""

    @property
    @abstractmethod
    def map(self) -> MapFunction[Iterable[T_contra], P, list[R_co]]:
        """The same as calling the function."""

    @property
    @abstractmethod
    def stream(self) -> MapFunction[Iterable[T_contra], P, Generator[R_co, None, None]]:
        """As `map`, but yield each result as it is ready, and read the items as they are needed."""

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


class AsyncMapped(
    BoundAttributes, MapFunction[AnyItems[T_contra], P, Coroutine[Any, Any, list[R_co]]], Generic[T_contra, P, R_co]
):
    """An async function of many items, made of an async function of one item or of a list of items."""

    @property
    @abstractmethod
    def map(self) -> MapFunction[AnyItems[T_contra], P, Coroutine[Any, Any, list[R_co]]]:
        """The same as calling the function."""

    @property
    @abstractmethod
    def stream(self) -> MapFunction[AnyItems[T_contra], P, AsyncGenerator[R_co, None]]:
        """As `map`, but yield each result as it is ready, and read the items as they are needed."""

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
