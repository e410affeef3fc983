"""`Policy`, which holds one policy of each kind, and the flat names of its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, Self, TypeVar, Unpack

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from opero.errors import ConfigError, UnknownOptionError, message_of
from opero.policies.base import BasePolicy, ShadowPolicy, StrictModel
from opero.policies.bulkhead import BulkheadPolicy
from opero.policies.cache import CachePolicy
from opero.policies.canary import CanaryPolicy
from opero.policies.circuit_breaker import CircuitBreakerPolicy
from opero.policies.door import apply
from opero.policies.failures import FailurePolicy
from opero.policies.fallback import FallbackPolicy
from opero.policies.hedge import HedgePolicy
from opero.policies.hooks import HooksPolicy
from opero.policies.merging import ObjectFields, fields_of, is_absent, overlay
from opero.policies.parallel import ParallelPolicy
from opero.policies.priority import PriorityPolicy
from opero.policies.rate_limit import RateLimitPolicy
from opero.policies.refusals import hint, made, refusal
from opero.policies.retry import RetryPolicy
from opero.policies.sharing import StoredPolicy
from opero.policies.throttle import ThrottlePolicy
from opero.policies.timeout import TimeoutPolicy

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

    from opero.policies.decorated_types import Decorated
    from opero.policies.limits import LimitsLike
    from opero.policies.options import Options
    from opero.policies.parallel import Mode
    from opero.policies.quantities import DurationLike
    from opero.runtime.clock import Clock
    from opero.runtime.priorities import Priority

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
        ThrottlePolicy,
        BulkheadPolicy,
        HedgePolicy,
        PriorityPolicy,
        FailurePolicy,
        HooksPolicy,
        ParallelPolicy,
        CanaryPolicy,
    )
}
"""The fields of `Policy`, and the model that each holds."""


def _flat_options() -> dict[str, tuple[str, str]]:
    def fields(policy: type[BasePolicy], base: type[BasePolicy]) -> list[str]:
        return [name for name in policy.model_fields if name not in base.model_fields]

    flat = {name: ("retry", name) for name in fields(RetryPolicy, StoredPolicy)}
    flat |= {name: (each.kind, name) for each in (HooksPolicy, ParallelPolicy) for name in fields(each, ShadowPolicy)}
    flat |= {"arg_fallback": ("fallback", "arg"), "attempt_timeout": ("timeout", "attempt")}
    flat |= {f"cache_{name.removeprefix('cache_')}": ("cache", name) for name in fields(CachePolicy, ShadowPolicy)}
    return flat


FLAT_OPTIONS: dict[str, tuple[str, str]] = _flat_options()
"""Flat option of `@opero` and `@opmap` → the policy and field that it sets. Each kind is also an option."""


if TYPE_CHECKING:
    from typing import Optional as Maybe
else:

    class Maybe:
        """The annotation of a field for a policy or None. The policy's schema is built when the first one is made.

        Most programs use few kinds, and building the schemas of all takes as long as a third of importing pydantic.
        """

        def __init__(self, model: type[BasePolicy]) -> None:
            self.model = model

        def __class_getitem__(cls, model: type[BasePolicy]) -> Any:
            return Annotated[model | None, cls(model)]

        def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
            return core_schema.no_info_plain_validator_function(self.validated)

        def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
            self.model.model_rebuild()
            return handler(core_schema.nullable_schema(self.model.__pydantic_core_schema__))

        def validated(self, value: Any) -> BasePolicy | None:
            return None if value is None else self.model.model_validate(value)


class Policy(StrictModel):
    """What should happen around a function: at most one policy of each kind. Immutable, hashable, picklable.

    A layer exists only if its policy is set, so an unused policy costs nothing. From outer to inner the layers are

        cache → fallback result → timeout (total) → retry → fallback values → hedge → circuit breaker → throttle
        → rate limit → bulkhead → timeout (attempt) → function

    Attributes:
        retry, cache, rate_limit, timeout, circuit_breaker, throttle, bulkhead, hedge, priority, fallback, failures,
            hooks, parallel, canary: see their models. Each may be given as a model, as a mapping of its fields, or
            short: `Policy(rate_limit="50/s", timeout="5s")`. False switches a policy off: with no values to keep, it is
            absent.

    Raises:
        ConfigError: an unknown field or a value out of range; the message names the nearest known field.
    """

    retry: Maybe[RetryPolicy] = None
    cache: Maybe[CachePolicy] = None
    rate_limit: Maybe[RateLimitPolicy] = None
    timeout: Maybe[TimeoutPolicy] = None
    circuit_breaker: Maybe[CircuitBreakerPolicy] = None
    throttle: Maybe[ThrottlePolicy] = None
    bulkhead: Maybe[BulkheadPolicy] = None
    hedge: Maybe[HedgePolicy] = None
    priority: Maybe[PriorityPolicy] = None
    fallback: Maybe[FallbackPolicy] = None
    failures: Maybe[FailurePolicy] = None
    hooks: Maybe[HooksPolicy] = None
    parallel: Maybe[ParallelPolicy] = None
    canary: Maybe[CanaryPolicy] = None

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            retry: RetryPolicy | Mapping[str, Any] | bool | int | None = None,
            cache: CachePolicy | Mapping[str, Any] | bool | DurationLike | None = None,
            rate_limit: RateLimitPolicy | Mapping[str, Any] | LimitsLike | bool | float | str | None = None,
            timeout: TimeoutPolicy | Mapping[str, Any] | bool | DurationLike | None = None,
            circuit_breaker: CircuitBreakerPolicy | Mapping[str, Any] | bool | int | None = None,
            hedge: HedgePolicy | Mapping[str, Any] | bool | DurationLike | None = None,
            throttle: ThrottlePolicy | Mapping[str, Any] | bool | float | None = None,
            bulkhead: BulkheadPolicy | Mapping[str, Any] | bool | int | Literal["adaptive"] | None = None,
            priority: PriorityPolicy | Mapping[str, Any] | bool | Priority | None = None,
            fallback: FallbackPolicy | Mapping[str, Any] | bool | None = None,
            failures: FailurePolicy | Mapping[str, Any] | bool | None = None,
            hooks: HooksPolicy | Mapping[str, Any] | bool | None = None,
            parallel: ParallelPolicy | Mapping[str, Any] | bool | Mode | None = None,
            canary: CanaryPolicy | Mapping[str, Any] | bool | None = None,
        ) -> None: ...

    @property
    def _off(self) -> frozenset[str]:
        """The policies that are switched off without values: absent here, and off in whatever is merged over them."""
        private = self.__pydantic_private__  # which pydantic copies and pickles; few policies need it
        return NO_KINDS if private is None else private["_off"]

    @model_validator(mode="wrap")
    @classmethod
    def _leave_out_absent(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        absent = [kind for kind, value in data.items() if is_absent(value)]
        if not absent:
            return handler(data)
        policy = handler({kind: None if kind in absent else value for kind, value in data.items()})
        object.__setattr__(policy, "__pydantic_private__", {"_off": frozenset(absent)})
        return policy

    @classmethod
    def _hint(cls, name: str) -> str:
        homes = [kind for kind, model in KINDS.items() if name in model.model_fields]
        return hint(name, cls.model_fields, [f"{kind}={{{name!r}: …}}" for kind in homes])

    @classmethod
    def from_options(cls, **options: Unpack[Options]) -> Self:
        """Make a policy of flat options: `Policy.from_options(retries=5, cache_ttl="30m", rate_limit=10)`.

        Raises:
            UnknownOptionError: an unknown option; the message names the nearest known one.
            ConfigError: a value out of range.
        """
        return made(cls, options_to_fields(options), names_of(options))

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any], names: Mapping[tuple[Any, ...], str] | None = None) -> None:
        """Check each field on its own; required fields may be missing, as others will be merged in.

        Args:
            fields: the fields.
            names: path of a field → the option that sets it.

        Raises:
            ConfigError: an unknown field or a value out of range.
        """
        refused = None
        try:
            cls.model_validate(fields)
        except ValidationError as error:
            if any(
                each["type"] == "unknown_field" or (len(each["loc"]) > 1 and each["type"] != "missing")
                for each in error.errors()
            ):
                refused = refusal(error, names, partial=True)
        if refused is not None:
            raise refused

    def fields(self) -> dict[str, Any]:
        """The fields that were set explicitly, as nested plain data that validates to an equal policy."""
        given = self._statements().items()
        return {kind: _fields(value) if isinstance(value, BasePolicy) else value for kind, value in given}

    def _statements(self) -> dict[str, Any]:
        """Kind → what this policy states about it: a policy object, None, or that it is switched off."""
        return {kind: {"enabled": False} if kind in self._off else value for kind, value in self._given().items()}

    def replace(self, **options: Unpack[Options]) -> Self:
        """Return a copy with some options changed, validated again.

        Args:
            **options: flat options and policies in any form; `opero.policies.merging` says what they replace.

        Raises:
            UnknownOptionError, ConfigError: as `from_options`.
        """
        return made(type(self), merge(self.fields(), options_to_fields(options)), names_of(options))

    def active(self, kind: str) -> Any:
        """The policy of that kind if it is set and enabled, else None."""
        policy = getattr(self, kind)
        return policy if policy is not None and policy.enabled else None

    def in_force(self, kind: str) -> Any:
        """The policy of that kind if it is set and enabled and not in shadow, else None."""
        policy = self.active(kind)
        return None if getattr(policy, "shadow", False) else policy

    def apply(self, func: Callable[P, R], *, clock: Clock | None = None) -> Decorated[P, R]:
        """Bind this policy to `func` and return a callable with the same signature.

        Args:
            func: a function, async function, generator function, method, class method or static method.
            clock: the source of time and randomness (see `opero.runtime.clock`). Default: the system.

        Raises:
            ConfigError: the policy does not fit the function; for example, the fallback argument is not a parameter.
        """
        return apply(self, func, clock)  # type: ignore[no-any-return]


def _fields(policy: BasePolicy) -> dict[str, Any]:
    given = policy._given()
    return ObjectFields(given) if is_absent(given) else given  # a disabled policy object stays present


def options_to_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert flat options to nested fields of `Policy`: `{"cache_ttl": 5}` → `{"cache": {"ttl": 5}}`.

    Raises:
        UnknownOptionError: an unknown option; the message names the nearest known one.
        ConfigError: a bare value for a policy without a short form.
    """
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name in KINDS:
            try:
                fields[name] = fields_of(KINDS[name], value)
            except ValueError as error:
                raise ConfigError(f"{name}: {message_of(error)}") from None
        elif name not in FLAT_OPTIONS:
            homes = [kind for kind, model in KINDS.items() if name in model.model_fields]
            advice = hint(name, [*FLAT_OPTIONS, *KINDS], [f"{kind}={{{name!r}: …}}" for kind in homes])
            raise UnknownOptionError(f"unknown option {name!r}{advice}")
    for name, value in options.items():
        if name not in KINDS:
            kind, field = FLAT_OPTIONS[name]
            if kind not in fields:
                fields[kind] = {field: value}
            elif fields[kind] is not None or value is not None:  # `cache=None, cache_ttl=None` removes the cache
                fields[kind] = overlay(fields[kind], {field: value}, KINDS[kind].exclusive)
    return fields


def names_of(options: Mapping[str, Any]) -> dict[tuple[Any, ...], str]:
    """Return path of a field → the flat option that sets it."""
    return {FLAT_OPTIONS[name]: name for name in options if name in FLAT_OPTIONS}


NO_KINDS: frozenset[str] = frozenset()


def whole_policies(options: Mapping[str, Any]) -> frozenset[str]:
    """The kinds of policy that options set by a model or a mapping, and which exist even without any field set."""
    whole = [kind for kind, value in options.items() if kind in KINDS and isinstance(value, BasePolicy | Mapping)]
    return frozenset(whole) if whole else NO_KINDS


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Merge statements about policies (see `opero.policies.merging`).

    Args:
        lower, upper: kind of policy → statement, in any form. `upper` has precedence.
    """
    result = dict(lower)
    for kind, value in upper.items():
        if kind not in KINDS:
            result[kind] = value  # the model refuses it
        elif kind in lower:
            below, above = (fields_of(KINDS[kind], each) for each in (lower[kind], value))
            result[kind] = overlay(below, above, KINDS[kind].exclusive)
        else:
            result[kind] = fields_of(KINDS[kind], value)
    return result
