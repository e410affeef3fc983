"""The fallback policy: what to use instead when an attempt or a call fails."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import SerializerFunctionWrapHandler, field_serializer, model_validator

from opero.failures.kinds import Kind
from opero.policies.base import BasePolicy
from opero.policies.fallback_values import REMEMBER, Order, Orders, Remember, Values, Weights
from opero.policies.names import Conditions, Function
from opero.policies.scope import KeyedScope, Scope
from opero.policies.types import UNSET

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from pydantic import SecretStr

    from opero.policies.names import ConditionsLike
    from opero.policies.quantities import DurationLike

OF_VALUES = ("values", "remember", "order", "weights", "scope")
"""Fields that say something of the values of `arg`."""


class FallbackPolicy(BasePolicy):
    """Use another argument value, another function, or a fixed result when an attempt or the whole call fails.

    Attributes:
        arg: the name of a parameter that may hold alternatives, such as several API keys. They are tried in turn,
            without delay. If the parameter's annotation has something else than a list or tuple, such as
            `str | list[str]`, the function receives one value; otherwise, or without an annotation, it receives the
            list with the current value first: `api_key[0]`.
        values: the values of `arg` for calls that leave it out, so that they can be changed without changing code; the
            parameter needs a default. Text, or `secret:NAME`, which stands for the variable NAME or a file of that name
            in the directory of secrets. They are never shown.
        remember: how long a value that was denied is set aside: it is asked last. A throttled one is not asked until
            its Retry-After, or for 1 s, and a value that worked after others had failed is asked first for that time.
            True is 5 minutes; false or 0 remembers nothing. Default
            5 minutes.
        order: with which value a call begins, among those that are not set aside: "in_order" (the first, or the one
            that worked when others had failed; the default), "round_robin", "weighted" or "least_loaded" (the one with
            the fewest calls in flight).
        weights: with `order: weighted`, the shares of the values by position, such as [3, 1]; a missing one is 1.
        scope: "profile": all functions bound to one named profile share what is remembered of the values; "function":
            each has its own; `{by: tenant}`, a `KeyedScope`: one memory for each value of another argument. Default
            "auto": "profile".
        default: what the call returns when everything else has failed or timed out; a copy each time. None is a
            value.
        function: called with the same arguments, instead of `default`; may be async if the bound function is.
        on: after which failures another value, `default` or `function` is used: kinds (see `opero.failures`), exception
            classes, and functions that receive the exception; in YAML their names. Default: all kinds but `permanent`,
            so a fallback hides neither a programming error nor a wrong request. opero's own rejections and timeouts
            are always covered.
    """

    kind: ClassVar[str] = "fallback"
    no_shadow: ClassVar[str] = (
        "it acts where a call has failed anyway; `failures` of the statistics are the calls that it would answer"
    )

    arg: str | None = None
    values: Values = ()
    remember: Remember = REMEMBER
    order: Order = "in_order"
    weights: Weights = ()
    scope: Scope = "auto"
    default: Any = UNSET
    function: Function | None = None
    on: Conditions = (Kind.TRANSIENT, Kind.THROTTLED, Kind.DENIED, Kind.UNKNOWN)

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            arg: str | None = None,
            values: Sequence[SecretStr | str] = (),
            remember: DurationLike | bool = 300.0,
            order: Orders = "in_order",
            weights: Sequence[float | str] = (),
            scope: Literal["auto", "profile", "function"] | KeyedScope | Mapping[str, Any] = "auto",
            default: Any = UNSET,
            function: Callable[..., Any] | str | None = None,
            on: ConditionsLike | None = (Kind.TRANSIENT, Kind.THROTTLED, Kind.DENIED, Kind.UNKNOWN),
        ) -> None: ...

    @property
    def has_result(self) -> bool:
        """Whether a call whose attempts have all failed still returns a result."""
        return self.default is not UNSET or self.function is not None

    @property
    def has_memory(self) -> bool:
        """Whether something is remembered of the values from one call to the next."""
        return self.arg is not None and (self.remember > 0 or self.order != "in_order")

    @field_serializer("default", mode="wrap")
    def _write_default(self, default: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return None if default is UNSET else handler(default)  # the serializer of the model leaves it out

    @model_validator(mode="after")
    def _check_one_is_set(self) -> Self:
        if self.arg is None and not self.has_result:
            raise ValueError("no fallback is set; set arg, default or function")
        if self.default is not UNSET and self.function is not None:
            raise ValueError("default and function are mutually exclusive; remove one of them")
        if self.arg is None:
            for field in OF_VALUES:
                if getattr(self, field) != type(self).model_fields[field].default:
                    raise ValueError(f"{field} is about an argument; set arg as well, or remove {field}")
        if isinstance(self.scope, KeyedScope) and not self.has_memory:
            raise ValueError("scope has no effect where nothing is remembered of values; set remember or order")
        if self.values and self.weights and len(self.values) != len(self.weights):
            raise ValueError(
                f"there are {len(self.values)} values and {len(self.weights)} weights; use one weight for each value"
            )
        if self.weights and self.order != "weighted":
            raise ValueError(f"weights have no effect with order {self.order}; use order weighted, or remove them")
        if self.order == "weighted" and not self.weights:
            raise ValueError("order weighted needs weights; add one for each value, such as [3, 1]")
        return self
