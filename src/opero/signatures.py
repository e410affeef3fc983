"""The types of bound functions, for type checkers and readers. At run time a bound function is a plain function."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from opero.binding import Binding
    from opero.policies.policy import Policy
    from opero.stats import Stats

__all__ = ["AsyncBound", "AsyncMapped", "Bound", "Mapped"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
I = TypeVar("I")  # noqa: E741


class _Carries(Protocol):
    """What every bound function carries."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    @property
    def policy(self) -> Policy:
        """The effective policy."""

    @property
    def stats(self) -> Stats:
        """Counts of what it has done so far."""

    @property
    def binding(self) -> Binding:
        """The function under its policy, live: its state, its circuit breaker."""

    def cache_clear(self) -> None:
        """Forget every cached result."""


class Bound(_Carries, Protocol, Generic[P, R_co]):
    """A sync function under a policy."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> Bound[P, R_co]: ...
    @overload
    def __get__(self: Bound[Concatenate[S, Q], R_co], instance: S, owner: Any = None) -> Bound[Q, R_co]: ...
    def map(self, items: Iterable[Any], *args: Any, **kwargs: Any) -> list[R_co]:
        """Call it for every item, in parallel; further arguments go to every call."""

    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None:
        """The cached result of such a call, or None."""

    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the cached result of such a call."""


class AsyncBound(_Carries, Protocol, Generic[P, R_co]):
    """An async function under a policy."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> AsyncBound[P, R_co]: ...
    @overload
    def __get__(self: AsyncBound[Concatenate[S, Q], R_co], instance: S, owner: Any = None) -> AsyncBound[Q, R_co]: ...
    def map(self, items: Iterable[Any], *args: Any, **kwargs: Any) -> Coroutine[Any, Any, list[R_co]]:
        """Call it for every item, in parallel; further arguments go to every call."""

    def cache_get(self, *args: P.args, **kwargs: P.kwargs) -> R_co | None:
        """The cached result of such a call, or None."""

    def cache_delete(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the cached result of such a call."""


class Mapped(_Carries, Protocol, Generic[T_contra, P, R_co]):
    """What `@opmap` makes of a sync function of one item, or of a list of items: a function of many items."""

    def __call__(self, items: Iterable[T_contra], *args: P.args, **kwargs: P.kwargs) -> list[R_co]: ...
    def map(self, items: Iterable[T_contra], *args: P.args, **kwargs: P.kwargs) -> list[R_co]:
        """The same as calling it."""

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Mapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: Mapped[S, Concatenate[list[I], Q], list[T]], instance: S, owner: Any = None
    ) -> Mapped[I, Q, T]: ...
    @overload
    def __get__(self: Mapped[S, Concatenate[I, Q], R_co], instance: S, owner: Any = None) -> Mapped[I, Q, R_co]: ...


class AsyncMapped(_Carries, Protocol, Generic[T_contra, P, R_co]):
    """What `@opmap` makes of an async function of one item, or of a list of items: an async function of many."""

    def __call__(
        self, items: Iterable[T_contra], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, list[R_co]]: ...
    def map(self, items: Iterable[T_contra], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, list[R_co]]:
        """The same as calling it."""

    @overload
    def __get__(self, instance: None, owner: Any = None) -> AsyncMapped[T_contra, P, R_co]: ...
    @overload
    def __get__(
        self: AsyncMapped[S, Concatenate[list[I], Q], list[T]], instance: S, owner: Any = None
    ) -> AsyncMapped[I, Q, T]: ...
    @overload
    def __get__(
        self: AsyncMapped[S, Concatenate[I, Q], R_co], instance: S, owner: Any = None
    ) -> AsyncMapped[I, Q, R_co]: ...
