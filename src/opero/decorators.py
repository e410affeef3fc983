"""The decorators `@opero` and `@opmap`, which make a `Policy` of options and bind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from opero.binding.fit import check_arguments
from opero.config.declaration import where
from opero.errors import ConfigError
from opero.policies.policy import Policy, merge, options_to_fields, whole_policies

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from opero.policies.bound_types import AsyncBatch, AsyncMapped, Batch, Bound, Mapped, OnlyAny
    from opero.policies.options import Options
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["opero", "opmap"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

DEFAULT_RETRIES = 3


class _Decorator:
    """The result of `@opero(...)`, which binds a function."""

    def __init__(self, decorate: Callable[[Any], Any]) -> None:
        self.decorate = decorate

    def __call__(self, func: Callable[P, R], /) -> Bound[P, R]:
        return self.decorate(func)  # type: ignore[no-any-return]


class _MapDecorator:
    """The result of `@opmap(...)`, which makes a function of one item, or of a list of items, a function of many."""

    def __init__(self, decorate: Callable[[Any], Any]) -> None:
        self.decorate = decorate

    @overload
    def __call__(self, func: Callable[Concatenate[T, P], OnlyAny], /) -> Mapped[T, P, Any]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first match is the intended one
        self, func: AsyncBatch[T, P, R], /
    ) -> AsyncMapped[T, P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, func: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], /
    ) -> AsyncMapped[T, P, R]: ...
    @overload
    def __call__(self, func: Batch[T, P, R], /) -> Mapped[T, P, R]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[T, P], R], /) -> Mapped[T, P, R]: ...
    def __call__(self, func: Any, /) -> Any:
        return self.decorate(func)


@overload
def opero(func: Callable[P, R], /) -> Bound[P, R]: ...
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
        pydantic.ValidationError: an option's value is out of range.
        ConfigError: the policy does not fit the function; for example, the fallback argument is not a parameter.
    """
    decorate = _decorating(policy, registry, clock, options, mapped=False)
    return _Decorator(decorate) if func is None else decorate(_decorated(func, "opero"))


@overload
def opmap(func: Callable[Concatenate[T, P], OnlyAny], /) -> Mapped[T, P, Any]: ...
@overload
def opmap(  # type: ignore[overload-overlap]  # the first match is the intended one
    func: AsyncBatch[T, P, R], /
) -> AsyncMapped[T, P, R]: ...
@overload
def opmap(  # type: ignore[overload-overlap]
    func: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], /
) -> AsyncMapped[T, P, R]: ...
@overload
def opmap(func: Batch[T, P, R], /) -> Mapped[T, P, R]: ...
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
    decorate = _decorating(policy, registry, clock, options, mapped=True)
    return _MapDecorator(decorate) if func is None else decorate(_decorated(func, "opmap"))


def _decorated(func: Any, decorator: str) -> Any:
    if isinstance(func, str | Policy):
        raise ConfigError(f"{decorator}({func!r}) is not applied to a function; use @{decorator}(policy={func!r})")
    return func


def _decorating(
    policy: str | Policy | None, registry: Registry | None, clock: Clock | None, options: Options, *, mapped: bool
) -> Callable[[Any], Any]:
    """Return the function that decorates with these options, which are checked here, before there is a function."""
    fields = options_to_fields(options)
    place = where(2)
    profile: str | None = None
    below: dict[str, Any] = {}
    effective: Policy | None = None
    if isinstance(policy, str):
        profile = policy
        Policy.check_fields(fields)
    elif policy is not None and not isinstance(policy, Policy):
        raise ConfigError(f"policy= must be a profile's name or a Policy, not of type {type(policy).__name__}")
    else:
        below = {"retry": {"retries": DEFAULT_RETRIES}} if policy is None else policy.fields()
        effective = Policy.model_validate(merge(below, fields))

    def decorate(func: Any) -> Any:
        from opero.registry.default import bind_declared

        check_arguments(fields, func)
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
