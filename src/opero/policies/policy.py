"""The whole of what should happen around a function, and the flat names of its options."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack, overload

from pydantic import ValidationError, model_validator

from opero.errors import UnknownOptionError, nearest
from opero.policies.base import BasePolicy, StrictModel
from opero.policies.bulkhead import BulkheadPolicy
from opero.policies.cache import CachePolicy
from opero.policies.circuit_breaker import CircuitBreakerPolicy
from opero.policies.fallback import FallbackPolicy
from opero.policies.parallel import ParallelPolicy
from opero.policies.rate_limit import RateLimitPolicy
from opero.policies.retry import RetryPolicy
from opero.policies.timeout import TimeoutPolicy

if TYPE_CHECKING:
    from opero.clock import Clock
    from opero.policies.options import Options
    from opero.policies.parallel import Mode
    from opero.policies.types import DurationLike
    from opero.signatures import AsyncBound, Bound

__all__ = ["FLAT_OPTIONS", "KINDS", "Policy", "merge", "options_to_fields", "whole_policies"]

P = ParamSpec("P")
R = TypeVar("R")

KINDS: dict[str, type[BasePolicy]] = {
    policy.kind: policy
    for policy in (
        RetryPolicy,
        FallbackPolicy,
        CachePolicy,
        RateLimitPolicy,
        TimeoutPolicy,
        CircuitBreakerPolicy,
        BulkheadPolicy,
        ParallelPolicy,
    )
}
"""The fields of `Policy`, and the model that each holds."""


def _flat_options() -> dict[str, tuple[str, str]]:
    own = set(BasePolicy.model_fields)

    def fields(policy: type[BasePolicy]) -> list[str]:
        return [name for name in policy.model_fields if name not in own]

    flat = {name: (policy.kind, name) for policy in (RetryPolicy, ParallelPolicy) for name in fields(policy)}
    flat |= {"arg_fallback": ("fallback", "arg"), "attempt_timeout": ("timeout", "attempt")}
    flat |= {f"cache_{name.removeprefix('cache_')}": ("cache", name) for name in fields(CachePolicy)}
    return flat


FLAT_OPTIONS: dict[str, tuple[str, str]] = _flat_options()
"""Flat option of `@opero` and `@opmap` → the policy and field that it sets. The kinds themselves are options, too."""


class Policy(StrictModel):
    """What should happen around a function: at most one policy of each kind. Immutable, hashable, picklable.

    A layer exists only where its policy is set, so what is not used costs nothing. From outer to inner the layers are

        cache → fallback result → timeout (total) → retry → fallback values → circuit breaker → rate limit → bulkhead
        → timeout (attempt) → function

    Attributes:
        retry, cache, rate_limit, timeout, circuit_breaker, bulkhead, fallback, parallel: see their models. Each may be
            given as a model, as a mapping of its fields, or short: `Policy(rate_limit="50/s", timeout="5s")`.

    Raises:
        pydantic.ValidationError: an unknown field or a value out of range; it names the field and the nearest known.
    """

    retry: RetryPolicy | None = None
    cache: CachePolicy | None = None
    rate_limit: RateLimitPolicy | None = None
    timeout: TimeoutPolicy | None = None
    circuit_breaker: CircuitBreakerPolicy | None = None
    bulkhead: BulkheadPolicy | None = None
    fallback: FallbackPolicy | None = None
    parallel: ParallelPolicy | None = None

    if TYPE_CHECKING:  # what code may write is wider than what the fields hold

        def __init__(
            self,
            *,
            retry: RetryPolicy | Mapping[str, Any] | int | None = None,
            cache: CachePolicy | Mapping[str, Any] | bool | DurationLike | None = None,
            rate_limit: RateLimitPolicy | Mapping[str, Any] | float | str | None = None,
            timeout: TimeoutPolicy | Mapping[str, Any] | DurationLike | None = None,
            circuit_breaker: CircuitBreakerPolicy | Mapping[str, Any] | int | None = None,
            bulkhead: BulkheadPolicy | Mapping[str, Any] | int | None = None,
            fallback: FallbackPolicy | Mapping[str, Any] | bool | None = None,
            parallel: ParallelPolicy | Mapping[str, Any] | Mode | bool | None = None,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _flag_off_is_absent(cls, data: Any) -> Any:
        """`cache: false` on a profile with no cache of its own holds no values to keep."""
        if isinstance(data, Mapping):
            return {name: None if value is False else value for name, value in data.items()}
        return data

    @classmethod
    def from_options(cls, **options: Unpack[Options]) -> Self:
        """The policy that flat options describe: `Policy.from_options(retries=5, cache_ttl="30m", rate_limit=10)`.

        Raises:
            UnknownOptionError: an option that does not exist; it names the nearest that does.
            pydantic.ValidationError: a value out of range.
        """
        return cls.model_validate(options_to_fields(options))

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> None:
        """Check fields that will be laid over others: each on its own, not whether they are complete or fit together.

        Raises:
            pydantic.ValidationError: a field that does not exist or a value out of range.
        """
        try:
            cls.model_validate(fields)
        except ValidationError as error:
            if any(
                each["type"] == "unknown_field" or (len(each["loc"]) > 1 and each["type"] != "missing")
                for each in error.errors()
            ):
                raise

    def fields(self) -> dict[str, Any]:
        """What was given when this policy was made, as nested plain data that merges, and validates to an equal one."""
        return {
            name: value._given() if isinstance(value, BasePolicy) else value for name, value in self._given().items()
        }

    def replace(self, **options: Unpack[Options]) -> Self:
        """A policy like this one with some options changed, validated anew; an option may be a whole policy or None.

        Raises:
            UnknownOptionError, pydantic.ValidationError: as `from_options`.
        """
        return type(self).model_validate(merge(self.fields(), options_to_fields(options)))

    def active(self, kind: str) -> Any:
        """The policy of that kind if it is set and enabled, else None."""
        policy = getattr(self, kind)
        return policy if policy is not None and policy.enabled else None

    @overload
    def apply(  # type: ignore[overload-overlap]  # the first that fits is meant
        self, func: Callable[P, Coroutine[Any, Any, R]], *, clock: Clock | None = None
    ) -> AsyncBound[P, R]: ...
    @overload
    def apply(self, func: Callable[P, R], *, clock: Clock | None = None) -> Bound[P, R]: ...
    def apply(self, func: Callable[..., Any], *, clock: Clock | None = None) -> Any:
        """Bind this policy to `func`: a callable with the same signature that does what the policy says.

        Args:
            func: a function, async function, generator function, method, class method or static method.
            clock: where time and chance come from; the system's unless given (see `opero.clock`).

        Raises:
            ConfigError: the policy does not fit the function, such as a fallback argument that it lacks.
        """
        from opero.bound import bind

        return bind(self, func, clock=clock)


def options_to_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options as the nested fields of `Policy`: `{"cache_ttl": 5}` → `{"cache": {"ttl": 5}}`.

    Raises:
        UnknownOptionError: an option that does not exist; it names the nearest that does.
    """
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name in KINDS:
            whole = None if value is None else KINDS[name].expand(value)
            fields[name] = {**fields.get(name, {}), **whole} if whole is not None else None
        elif name not in FLAT_OPTIONS:
            raise UnknownOptionError(f"unknown option {name!r}{nearest(name, [*FLAT_OPTIONS, *KINDS])}")
    for name, value in options.items():
        if name not in KINDS:
            kind, field = FLAT_OPTIONS[name]
            held = fields.setdefault(kind, {})
            if held is not None:
                held[field] = value
            elif value is not None:
                fields[kind] = {field: value}
    return fields


def whole_policies(options: Mapping[str, Any]) -> frozenset[str]:
    """The policies that options give whole, as a model or a mapping: with no field set they would be there, too."""
    return frozenset(kind for kind in KINDS if isinstance(options.get(kind), BasePolicy | Mapping))


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` with `upper` laid over it, key by key; a None in `upper` removes what `lower` says."""
    merged = dict(lower)
    for kind, value in upper.items():
        if kind in KINDS and value is not None:
            held = merged.get(kind)
            merged[kind] = {**(KINDS[kind].expand(held) if held is not None else {}), **KINDS[kind].expand(value)}
        else:
            merged[kind] = value
    return merged
