"""The types of bound functions, for type checkers and readers. At run time a bound function is a plain function.

`Bound` and `Mapped` are nominal classes, not protocols, so that no plain function passes for one. They are abstract and
cannot be instantiated. What the decorators return is in `decorated_types`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from opero.policies.map_types import (
    AsyncMap,
    AsyncStarMap,
    AsyncStarStream,
    AsyncStream,
    Map,
    StarMap,
    StarStream,
    Stream,
)

if TYPE_CHECKING:
    from opero.observe.stats import Stats
    from opero.policies.map_types import MapAttribute, OnlyAny, StarMapAttribute, StarStreamAttribute, StreamAttribute
    from opero.policies.policy import Policy
    from opero.values import CacheEntry, CacheInfo

P = ParamSpec("P")
Q = ParamSpec("Q")
F_co = TypeVar("F_co", covariant=True)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
U = TypeVar("U")


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


class Signature(Protocol[F_co]):
    """The signature of what is called, or called for each item, which overloads of `__get__` take apart."""

    @property
    def _signature(self) -> F_co: ...


class Bound(BoundAttributes, Generic[P, R_co]):
    """A function under a policy, with its own signature: what `@opero` and `Policy.apply` return."""

    map: ClassVar[MapAttribute]
    """Call the function for every item, in parallel, and return the list of results."""

    stream: ClassVar[StreamAttribute]
    """As `map`, but yield each result as it is ready, and read the items as they are needed."""

    starmap: ClassVar[StarMapAttribute]
    """As `map`, for items that are tuples of arguments."""

    starstream: ClassVar[StarStreamAttribute]
    """As `stream`, for items that are tuples of arguments."""

    @property
    @abstractmethod
    def _signature(self) -> Callable[P, R_co]:
        """For type checkers only."""

    @abstractmethod
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def cache_get(self: AsyncBound[Q, U], *args: Q.args, **kwargs: Q.kwargs) -> U | None: ...
    @overload
    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None: ...
    @abstractmethod
    def cache_get(self, *args: Any, **kwargs: Any) -> Any:
        """Return the cached result of a call with these arguments, or None."""

    @overload
    def cache_entry(self: AsyncBound[Q, U], *args: Q.args, **kwargs: Q.kwargs) -> CacheEntry[U] | None: ...
    @overload
    def cache_entry(self, *args: P.args, **kwargs: P.kwargs) -> CacheEntry[R_co] | None: ...
    @abstractmethod
    def cache_entry(self, *args: Any, **kwargs: Any) -> Any:
        """Return the cached result of a call with these arguments, its age and the time left; None if there is none."""

    @abstractmethod
    def cache_set(self, value: Any, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store a value as the result of a call with these arguments. Return whether it was stored."""

    @abstractmethod
    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Delete the cached result of a call with these arguments."""


AsyncBound = Bound[P, Coroutine[Any, Any, R]]
"""An async function under a policy: `AsyncBound[[str], bytes]` takes a string and gives bytes when awaited."""


class Mapped(BoundAttributes, Map[T_contra, P, R_co], Generic[T_contra, P, R_co]):
    """A function of many items, which `@opmap` makes of a function of one item or of a list of items.

    Items have the type of the first parameter. A method's first parameter is the instance, until `__get__` removes it.
    """

    @property
    @abstractmethod
    def _signature(self) -> Callable[Concatenate[T_contra, P], R_co]:
        """For type checkers only."""

    @property
    @abstractmethod
    def map(self) -> Map[T_contra, P, R_co]:
        """Do the same as a call of the function itself."""

    @property
    @abstractmethod
    def stream(self) -> Stream[T_contra, P, R_co]:
        """As `map`, but yield each result as it is ready, and read the items as they are needed."""

    @property
    @abstractmethod
    def starmap(self) -> StarMap[R_co]:
        """As `map`, for items that are tuples of arguments."""

    @property
    @abstractmethod
    def starstream(self) -> StarStream[R_co]:
        """As `stream`, for items that are tuples of arguments."""

    @overload
    def __get__(
        self: Signature[Callable[Concatenate[OnlyAny, ...], Any]], instance: object, owner: Any = None
    ) -> Mapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[type[S], list[T], Q], list[U]]], instance: S | None, owner: type[S]
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[type[S], T, Q], U]], instance: S | None, owner: type[S]
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> Mapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[S, list[T], Q], list[U]]], instance: S, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[S, T, Q], U]], instance: S, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> Mapped[T_contra, P, R_co]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...


class AsyncMapped(BoundAttributes, AsyncMap[T_contra, P, R_co], Generic[T_contra, P, R_co]):
    """As `Mapped`, for an async function."""

    @property
    @abstractmethod
    def _signature(self) -> Callable[Concatenate[T_contra, P], R_co]: ...

    @property
    @abstractmethod
    def map(self) -> AsyncMap[T_contra, P, R_co]:
        """Do the same as a call of the function itself."""

    @property
    @abstractmethod
    def stream(self) -> AsyncStream[T_contra, P, R_co]:
        """As `map`, but yield each result as it is ready, and read the items as they are needed."""

    @property
    @abstractmethod
    def starmap(self) -> AsyncStarMap[R_co]:
        """As `map`, for items that are tuples of arguments."""

    @property
    @abstractmethod
    def starstream(self) -> AsyncStarStream[R_co]:
        """As `stream`, for items that are tuples of arguments."""

    @overload
    def __get__(
        self: Signature[Callable[Concatenate[OnlyAny, ...], Any]], instance: object, owner: Any = None
    ) -> AsyncMapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[type[S], list[T], Q], list[U]]], instance: S | None, owner: type[S]
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[type[S], T, Q], U]], instance: S | None, owner: type[S]
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> AsyncMapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[S, list[T], Q], list[U]]], instance: S, owner: Any = None
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: Signature[Callable[Concatenate[S, T, Q], U]], instance: S, owner: Any = None
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> AsyncMapped[T_contra, P, R_co]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...
