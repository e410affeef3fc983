"""The decorators `@opero` and `@opmap`, which make a `Policy` of options and bind it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from opero.binding.fit import check_arguments, check_own
from opero.config.declaration import NO_FIELDS, where
from opero.errors import ConfigError
from opero.failures.kinds import Kind
from opero.policies.policy import Policy, merge, names_of, options_to_fields, whole_policies
from opero.policies.refusals import made

if TYPE_CHECKING:
    from opero.policies.bound_types import AsyncMapped, Mapped
    from opero.policies.decorated_types import (
        AnyFunction,
        ClassMethod,
        ClsFunction,
        Decorated,
        MappedClassMethod,
        MappedMethod,
        Method,
        SelfFunction,
    )
    from opero.policies.map_types import OnlyAny
    from opero.policies.options import Options
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

BARE: dict[str, Any] = {"retry": {"retries": 3}}
"""What `@opero` means without a policy."""
BARE_MAP: dict[str, Any] = {"retry": {"retries": 3, "retry_on": (Kind.TRANSIENT, Kind.THROTTLED)}}
"""What `@opmap` means without any option of retry: an item that fails for a reason of its own is not retried."""


@functools.cache
def _bare_policy(*, mapped: bool) -> Policy:
    return Policy.model_validate(BARE_MAP if mapped else BARE)


class _Decorator:
    """The result of `@opero(...)`, which binds a function."""

    def __init__(self, decorate: Callable[[Any], Any]) -> None:
        self.decorate = decorate

    @overload
    def __call__(self, func: AnyFunction[R], /) -> Decorated[..., R]: ...
    @overload
    def __call__(self, func: SelfFunction[S, P, R], /) -> Method[Callable[P, R]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: ClsFunction[S, P, R], /) -> ClassMethod[Callable[P, R]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Decorated[P, R]: ...
    def __call__(self, func: Any, /) -> Any:
        return self.decorate(func)


class _MapDecorator:
    """The result of `@opmap(...)`, which makes a function of one item, or of a list of items, a function of many."""

    def __init__(self, decorate: Callable[[Any], Any]) -> None:
        self.decorate = decorate

    @overload
    def __call__(self, func: AnyFunction[R], /) -> Mapped[Any, ..., R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: SelfFunction[S, P, R], /) -> MappedMethod[Callable[P, R]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: ClsFunction[S, P, R], /) -> MappedClassMethod[Callable[P, R]]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[Concatenate[T, P], OnlyAny], /) -> Mapped[T, P, Any]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first match is the intended one
        self, func: Callable[Concatenate[list[T], P], Coroutine[Any, Any, list[R]]], /
    ) -> AsyncMapped[T, P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, func: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], /
    ) -> AsyncMapped[T, P, R]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[list[T], P], list[R]], /) -> Mapped[T, P, R]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[T, P], R], /) -> Mapped[T, P, R]: ...
    def __call__(self, func: Any, /) -> Any:
        return self.decorate(func)


@overload
def opero(func: AnyFunction[R], /) -> Decorated[..., R]: ...
@overload
def opero(func: SelfFunction[S, P, R], /) -> Method[Callable[P, R]]: ...  # type: ignore[overload-overlap]
@overload
def opero(func: ClsFunction[S, P, R], /) -> ClassMethod[Callable[P, R]]: ...
@overload
def opero(func: Callable[P, R], /) -> Decorated[P, R]: ...
@overload
def opero(
    *,
    policy: str | Policy | None = None,
    registry: Registry | None = None,
    clock: Clock | None = None,
    **options: Unpack[Options],
) -> _Decorator: ...
def opero(
    func: Any = None,
    /,
    *,
    policy: str | Policy | None = None,
    registry: Registry | None = None,
    clock: Clock | None = None,
    **options: Unpack[Options],
) -> Any:
    """Make a function resilient: `@opero`, `@opero(retries=5, cache_ttl="5m")`, `@opero(policy="api")`.

    Args:
        func: a sync or async function, generator function, method, class method or static method.
        policy: the name of a profile, resolved at the first call, or a `Policy`. Without it, `retries` is 3 unless the
            options set it.
        registry: the registry of the profile. Default: the default registry, at the first call.
        clock: the source of time and randomness. Default: the system.
        **options: flat options (`retries`, `cache_ttl`, `rate_limit`, `arg_fallback`, `timeout`, ...) and policies in
            any form. They are merged with the profile (see `opero.policies.merging`): flat options and mappings
            replace the fields that they name, `retry=RetryPolicy(...)` replaces the whole policy, `cache=False`
            switches a policy off, `cache=None` removes it.

    Returns:
        A callable with the same signature and the attributes `.policy`, `.stats`, `.map`, `.binding` and `.cache_*`.

    Raises:
        UnknownOptionError: an unknown option; the message names the nearest known one.
        ConfigError: an option's value is out of range, or the policy does not fit the function; for example, the
            fallback argument is not a parameter.
    """
    decorate = decorating(policy, registry, clock, options, where(1), mapped=False)
    return _Decorator(decorate) if func is None else decorate(_decorated(func, "opero"))


@overload
def opmap(func: AnyFunction[R], /) -> Mapped[Any, ..., R]: ...  # type: ignore[overload-overlap]
@overload
def opmap(func: SelfFunction[S, P, R], /) -> MappedMethod[Callable[P, R]]: ...  # type: ignore[overload-overlap]
@overload
def opmap(func: ClsFunction[S, P, R], /) -> MappedClassMethod[Callable[P, R]]: ...  # type: ignore[overload-overlap]
@overload
def opmap(func: Callable[Concatenate[T, P], OnlyAny], /) -> Mapped[T, P, Any]: ...
@overload
def opmap(  # type: ignore[overload-overlap]  # the first match is the intended one
    func: Callable[Concatenate[list[T], P], Coroutine[Any, Any, list[R]]], /
) -> AsyncMapped[T, P, R]: ...
@overload
def opmap(  # type: ignore[overload-overlap]
    func: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], /
) -> AsyncMapped[T, P, R]: ...
@overload
def opmap(func: Callable[Concatenate[list[T], P], list[R]], /) -> Mapped[T, P, R]: ...
@overload
def opmap(func: Callable[Concatenate[T, P], R], /) -> Mapped[T, P, R]: ...
@overload
def opmap(
    *,
    policy: str | Policy | None = None,
    registry: Registry | None = None,
    clock: Clock | None = None,
    **options: Unpack[Options],
) -> _MapDecorator: ...
def opmap(
    func: Any = None,
    /,
    *,
    policy: str | Policy | None = None,
    registry: Registry | None = None,
    clock: Clock | None = None,
    **options: Unpack[Options],
) -> Any:
    """Make a function of one item a function of many: `resize(paths)` returns a list of results.

    A function whose first parameter is annotated as a list receives batches and returns lists of equal length. Other
    arguments are passed with every item. For an async function, the call is awaited.

    Args, Raises: as `opero`; `mode`, `workers`, `ordered`, `batch`, `batch_size`, `on_error` control the map.

    Raises:
        MapError: when called, if items failed; it has all results and failures so far.
    """
    decorate = decorating(policy, registry, clock, options, where(1), mapped=True)
    return _MapDecorator(decorate) if func is None else decorate(_decorated(func, "opmap"))


def _decorated(func: Any, decorator: str) -> Any:
    if isinstance(func, str | Policy):
        raise ConfigError(f"{decorator}({func!r}) is not applied to a function; use @{decorator}(policy={func!r})")
    if isinstance(func, type) and issubclass(func, BaseException):
        name = func.__name__
        raise ConfigError(f"{decorator}({name}) is not applied to a function; use @{decorator}(retry_on=[{name}])")
    return func


def decorating(
    policy: str | Policy | None,
    registry: Registry | None,
    clock: Clock | None,
    options: Options,
    place: tuple[str, int],
    *,
    mapped: bool = False,
) -> Callable[[Any], Any]:
    """Return the function that decorates with these options, which are checked here, before there is a function.

    Args:
        policy, registry, clock, options: as for `opero`.
        place: the file and line that state them.
        mapped: whether the bound function takes many items.
    """
    fields = options_to_fields(options) if options else NO_FIELDS
    profile: str | None = None
    below: Mapping[str, Any] = {}
    effective: Policy | None = None
    if isinstance(policy, str):
        profile = policy
        if fields:
            Policy.check_fields(fields, names_of(options))
    elif policy is not None and not isinstance(policy, Policy):
        raise ConfigError(f"policy= must be a profile's name or a Policy, not of type {type(policy).__name__}")
    else:
        bare = BARE_MAP if mapped and "retry" not in fields else BARE
        below = bare if policy is None else policy.fields()
        is_bare = policy is None and not fields
        effective = _bare_policy(mapped=mapped) if is_bare else made(Policy, merge(below, fields), names_of(options))

    def decorate(func: Any) -> Any:
        from opero.registry.default import bind_declared

        if isinstance(func, type) and not mapped:
            raise ConfigError(
                f"@opero cannot decorate the class {func.__name__}, which would be no class any more: decorate its "
                "methods, or bind the calls that make its instances with Policy.apply"
            )
        check_arguments(fields, func)
        check_own(effective, func, fields)
        return bind_declared(
            func,
            effective,
            profile=profile,
            below=below,
            fields=fields,
            registry=registry,
            clock=clock,
            mapped=mapped,
            place=place,
            whole=whole_policies(options),
        )

    return decorate
