"""The types of what decorators return, for type checkers only.

They are protocols, so that plain functions may override decorated methods. On an override, mypy compares what
`__get__` returns for an instance, and pyright what stands in the class. So pyright has to know a method when it is
decorated, by the name of its first parameter: `Method` leaves out the type of `self`, which differs in a subclass.
mypy uses `Decorated` for all functions, since several overloads that match a signature with `Any` are `Any` to it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Never, ParamSpec, Protocol, Self, TypeVar, overload

from opero.policies.bound_types import Bound, BoundAttributes

if TYPE_CHECKING:
    from opero.policies.bound_types import AsyncMapped, Mapped, Signature
    from opero.policies.map_types import OnlyAny

F_co = TypeVar("F_co", covariant=True)
P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
U = TypeVar("U")


class NamedSelf(Protocol[T_contra, P, R_co]):
    """A function whose first parameter is named `self`."""

    def __call__(_, self: T_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...  # noqa: N805


class NamedCls(Protocol[T_contra, P, R_co]):
    """A function whose first parameter is named `cls`."""

    def __call__(self, cls: T_contra, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class FirstIsAnything(Protocol):
    """A function whose first parameter can be anything, so that it is not the instance."""

    def __call__(self, first: OnlyAny, /, *args: Any, **kwargs: Any) -> Any: ...


if TYPE_CHECKING:  # typing.Protocol refuses the base

    class Decorated(Bound[P, R_co], Protocol[P, R_co]):  # type: ignore[misc]  # pyright: ignore
        """A bound function or bound method as decorators return it.

        It is a protocol that consists of `__call__` and `__get__`. Every function has these, so that it may override a
        bound method. The attributes are those of `Bound`, and no part of the protocol.
        """

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

        # The first overload that matches decides. `-> Any` would match `-> Self` as well, so it comes before.
        @overload
        def __get__(self: NamedSelf[Never, ..., object], instance: None, owner: Any = None) -> Decorated[P, R_co]: ...
        @overload
        def __get__(self: NamedSelf[S, Q, OnlyAny], instance: S, owner: Any = None) -> Decorated[Q, Any]: ...
        @overload  # `-> Self`: only a function that returns its argument returns Never for Never
        def __get__(self: NamedSelf[Never, Q, Never], instance: S, owner: Any = None) -> Decorated[Q, S]: ...
        @overload
        def __get__(self: NamedCls[type[S], Q, OnlyAny], instance: object, owner: type[S]) -> Decorated[Q, Any]: ...
        @overload
        def __get__(self: NamedCls[Never, Q, Never], instance: object, owner: type[S]) -> Decorated[Q, S]: ...
        @overload  # a static method
        def __get__(self: FirstIsAnything, instance: object, owner: Any = None) -> Decorated[P, R_co]: ...
        @overload  # a class method, by the type of its first parameter
        def __get__(  # type: ignore[misc]
            self: Callable[Concatenate[type[S], Q], U], instance: S | None, owner: type[S]
        ) -> Decorated[Q, U]: ...
        @overload
        def __get__(self, instance: None, owner: Any = None) -> Decorated[P, R_co]: ...
        @overload  # a method, by the type of its first parameter, for mypy
        def __get__(self: Callable[Concatenate[S, Q], U], instance: S, owner: Any = None) -> Decorated[Q, U]: ...
        @overload  # the same for pyright
        def __get__(
            self: Signature[Callable[Concatenate[S, Q], U]], instance: S, owner: Any = None
        ) -> Decorated[Q, U]: ...
        @overload  # another static method
        def __get__(self, instance: object, owner: Any = None) -> Decorated[P, R_co]: ...
        def __get__(self, instance: Any, owner: Any = None) -> Any: ...


# What follows is for pyright. No function has such a `__code__`, as mypy finds out; pyright compares its name only.


class SelfFunction(NamedSelf[T_contra, P, R_co], Protocol[T_contra, P, R_co]):
    __code__: OnlyAny


class ClsFunction(NamedCls[T_contra, P, R_co], Protocol[T_contra, P, R_co]):
    __code__: OnlyAny


class AnyFunction(Protocol[R_co]):
    """A function of `*args` and `**kwargs`, which could also have a parameter named `self`."""

    __code__: OnlyAny

    def __call__(self, a: Any = ..., b: Any = ..., c: Any = ..., /, *, _any: Any = ...) -> R_co: ...


class Method(Protocol[F_co]):
    """A bound function in a class body, without its first parameter: `Method[Callable[P, R]]`.

    pyright takes `__call__` for the signature that a plain override must have, with its first parameter, and for
    the one that the class has for a protocol, without it. So it accepts any parameters.
    """

    def __call__(self: Method[Callable[..., R]], *args: Any, **kwargs: Any) -> R: ...

    @overload
    def __get__(self: Method[Callable[P, R]], instance: None, owner: type[S]) -> Decorated[Concatenate[S, P], R]: ...
    @overload
    def __get__(self: Method[Callable[P, R]], instance: object, owner: Any = None) -> Decorated[P, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...


class ClassMethod(Protocol[F_co]):
    """As `Method`, for a function that takes its class first."""

    def __call__(self: ClassMethod[Callable[..., R]], *args: Any, **kwargs: Any) -> R: ...

    def __get__(self: ClassMethod[Callable[P, R]], instance: object, owner: Any = None) -> Decorated[P, R]: ...


class MappedMethod(BoundAttributes, Generic[F_co]):
    """As `Method`, for `@opmap`."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(
        self: MappedMethod[Callable[Concatenate[T, Q], OnlyAny]], instance: object, owner: Any = None
    ) -> Mapped[T, Q, Any]: ...
    @overload
    def __get__(
        self: MappedMethod[Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]]],
        instance: object,
        owner: Any = None,
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: MappedMethod[Callable[Concatenate[T, Q], Coroutine[Any, Any, U]]], instance: object, owner: Any = None
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: MappedMethod[Callable[Concatenate[list[T], Q], list[U]]], instance: object, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(
        self: MappedMethod[Callable[Concatenate[T, Q], U]], instance: object, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...


class MappedClassMethod(BoundAttributes, Generic[F_co]):
    """As `ClassMethod`, for `@opmap`."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    @overload
    def __get__(
        self: MappedClassMethod[Callable[Concatenate[T, Q], OnlyAny]], instance: object, owner: Any = None
    ) -> Mapped[T, Q, Any]: ...
    @overload
    def __get__(
        self: MappedClassMethod[Callable[Concatenate[list[T], Q], Coroutine[Any, Any, list[U]]]],
        instance: object,
        owner: Any = None,
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: MappedClassMethod[Callable[Concatenate[T, Q], Coroutine[Any, Any, U]]],
        instance: object,
        owner: Any = None,
    ) -> AsyncMapped[T, Q, U]: ...
    @overload
    def __get__(
        self: MappedClassMethod[Callable[Concatenate[list[T], Q], list[U]]], instance: object, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @overload
    def __get__(
        self: MappedClassMethod[Callable[Concatenate[T, Q], U]], instance: object, owner: Any = None
    ) -> Mapped[T, Q, U]: ...
    @abstractmethod
    def __get__(self, instance: Any, owner: Any = None) -> Any: ...
