"""The rate limit policy: how often to call."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import SerializerFunctionWrapHandler, ValidationError, field_serializer, model_validator
from pydantic_core import InitErrorDetails

from opero.failures.kinds import Kind
from opero.policies.limits import Cost, CostFromResult, Limit, Limits, check_permits, names_of_limits
from opero.policies.names import Conditions
from opero.policies.quantities import SERVICE, Count, Duration, PositiveCount, PositiveDuration, Rate, fastest
from opero.policies.scope import Scope
from opero.policies.sharing import StoredLimitPolicy
from opero.policies.types import UNSET, Flag

if TYPE_CHECKING:
    from typing import Literal

    from pydantic import SecretStr

    from opero.policies.limits import LimitsLike
    from opero.policies.names import ConditionsLike
    from opero.policies.quantities import DurationLike
    from opero.policies.scope import KeyedScope


UNLIMITED = 1e6
"""Permits a second where no rate is stated: more than a program can use."""


class RateLimitPolicy(StoredLimitPolicy):
    """Limit the rate of calls; wait for a permit if none is available.

    Permits are evenly spaced: `rate: 10` with the default burst allows a call every 0.1 s, so five calls take at
    least 0.4 s. All callers share one budget: threads, event loops, sync and async callers; with `share: redis` those
    of all processes and machines.

    A short form: `rate_limit: 50/s` means `rate_limit: {rate: 50/s}`, and a list means `{limits: …}`: several limits,
    such as the requests and the tokens of a model API, of which a call takes permits together or not at all.

    Where a service says how much of a quota is left, or how long to wait, all callers heed it (see `feedback`).

    Attributes:
        rate: permits per second; a number, or text such as "50/s", "1000/min", "100/30s"; "adaptive", or "adaptive up
            to 200/s": the rate that a service accepts, found by itself; or "service": nothing but what the service
            says limits the rate. Required, unless there are `limits`.
        limits: several limits, each with a `rate`, and with `burst`, `cost`, `cost_from_result` and `name` of its own
            (see `Limit`). A call waits for the one that has its permits last. Default none.
        burst: how many unused permits may accumulate. Default 1.
        max_wait: the longest wait for a permit; a call that would wait longer raises `RateLimitExceededError`
            immediately. Default None: no limit.
        cost: permits that a call takes: a number, the name of the parameter that holds it, or a function of the
            call's arguments (in YAML "module:function"). A call that costs more than `burst` waits until the budget
            is full and overdraws it. Default 1.
        cost_from_result: what a call has really cost, of which `cost` is an estimate: where the result has it, such
            as "usage.total_tokens" (attributes, keys and positions), or a function of the result (in YAML
            "module:function"). The difference is given back, or taken besides, which later calls wait for. Of a
            generator, it is asked of each item, and the last number counts. A result without such a number leaves the
            estimate, with a warning. Default None.
        refund_on: the failures after which a call has used nothing of a limit whose cost is an estimate, so that it is
            given back: kinds (see `opero.failures`), exception classes, and functions that receive the exception; in
            YAML their names. After other failures and cancellations the estimate stands, as the service may have done
            the work. Default `throttled` and `denied`: the service has refused the call.
        scope: "profile": all functions bound to one named profile share its budget; "function": each has its own;
            `{by: tenant}`, a `KeyedScope`: one for each value of an argument. Default "auto": "profile"; under an HTTP
            client `{by: host}`.
        share: whose calls take permits from one budget: "process", those of this process; "machine", those of all
            processes of this user on this machine; "redis", those of all processes that use the same server (requires
            that extra). Default "process".
        share_as: the name of the budget that is shared. Default: the name of the profile; for a function with its own
            budget, its module and name.
        url: the URL of redis, as for a cache. Default: environment variable `OPERO_REDIS_URL`, else
            redis://localhost:6379/0.
        on_store_error: what holds while redis cannot be used: "local", each process uses the share of the permits that
            it had before; "open", calls are not limited; "closed", they are rejected. Default "local".
        store_timeout: how long to wait for redis; seconds or text. Default 0.25 seconds.
        reserve: with `share: redis`, how many permits of the burst may be reserved ahead, so that not each call asks
            redis. Default 0: none.
        feedback: whether calls wait as long as a response or an exception asks (Retry-After), and until a quota of
            which nothing is left is renewed (RateLimit, X-RateLimit-Remaining and their relatives): all calls that
            share the budget. Default true. Where the values of a fallback argument have a quota each, the throttled
            value is set aside instead.
        max_pause: the longest pause that feedback causes; a service that asks for more is asked again after it;
            seconds or text. Default 5 minutes.
    """

    short: ClassVar[str | None] = "rate"
    kind: ClassVar[str] = "rate_limit"

    exclusive: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rate": ("limits",),
        "limits": ("rate", "burst", "cost", "cost_from_result", "reserve"),
    }

    rate: Rate = UNSET  # type: ignore[assignment]  # for a limit that has several, `each` has all
    limits: Limits = ()
    burst: PositiveCount = 1
    max_wait: Duration | None = None
    cost: Cost = 1.0
    scope: Scope = "auto"
    cost_from_result: CostFromResult = None
    refund_on: Conditions = (Kind.THROTTLED, Kind.DENIED)
    reserve: Count = 0
    feedback: Flag = True
    max_pause: PositiveDuration = 300.0

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            rate: float | str = UNSET,  # type: ignore[assignment]
            limits: LimitsLike | None = (),
            burst: int = 1,
            max_wait: DurationLike | None = None,
            cost: float | str | Callable[..., float] = 1.0,
            scope: Literal["auto", "profile", "function"] | KeyedScope | Mapping[str, Any] = "auto",
            cost_from_result: str | Callable[[Any], float | None] | None = None,
            refund_on: ConditionsLike | None = (Kind.THROTTLED, Kind.DENIED),
            share: Literal["process", "machine", "redis"] = "process",
            share_as: str | None = None,
            url: SecretStr | str | None = None,
            on_store_error: Literal["local", "open", "closed"] = "local",
            store_timeout: DurationLike = 0.25,
            reserve: int = 0,
            feedback: bool = True,
            max_pause: DurationLike = 300.0,
        ) -> None: ...

    @field_serializer("rate", mode="wrap")
    def _rate_or_none(self, rate: Any, handler: SerializerFunctionWrapHandler) -> Any:
        return None if rate is UNSET else handler(rate)  # the serializer of the model leaves it out

    @classmethod
    def expand(cls, value: Any) -> dict[str, Any]:
        return {"limits": value} if isinstance(value, list | tuple) else super().expand(value)

    @property
    def each(self) -> tuple[Limit, ...]:
        """All limits, of which a policy with a `rate` has one."""
        fields = ("burst", "cost", "cost_from_result")
        return self.limits or (Limit(rate=self.fastest, **{name: getattr(self, name) for name in fields}),)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all limits."""
        return names_of_limits(self.each)

    @property
    def _has_rate(self) -> bool:
        return self.__dict__["rate"] is not UNSET

    @property
    def is_estimated(self) -> bool:
        """Whether calls may turn out to have cost something else than their `cost`."""
        return any(each.is_estimated for each in self.each)

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if not self.limits:
            if not self._has_rate:
                wrong = InitErrorDetails(type="missing", loc=("rate",), input={})
                raise ValidationError.from_exception_data(type(self).__name__, [wrong])
            check_permits(self.fastest, burst=self.burst, cost=self.cost)
            return self
        if self._has_rate:
            raise ValueError("rate and limits exclude each other; make the rate one of the limits: [{rate: …}, …]")
        fields = type(self).model_fields
        names = ("burst", "cost", "cost_from_result", "reserve")
        if idle := [name for name in names if getattr(self, name) != fields[name].default]:
            verb, them = ("has", "it") if len(idle) == 1 else ("have", "them")
            advice = "" if idle == ["reserve"] else ", and state it in each of the limits"
            raise ValueError(f"{' and '.join(idle)} {verb} no effect beside limits; remove {them}{advice}")
        return self

    @property
    def fastest(self) -> float:
        """Permits per second at most; of several limits, of the fastest one."""
        if self.limits:
            return max(each.rate for each in self.limits)
        return fastest(self.rate) or UNLIMITED

    @property
    def is_adaptive(self) -> bool:
        """Whether the rate is found by itself."""
        return isinstance(self.rate, str) and self.rate != SERVICE

    @model_validator(mode="after")
    def _check_found(self) -> Self:
        if not isinstance(self.rate, str):
            return self
        if self.rate == SERVICE and not self.feedback:
            raise ValueError("rate: service has no effect with feedback: false, as nothing would limit the rate")
        if self.cost != 1.0:
            raise ValueError(f"cost has no effect with rate: {self.rate}, which counts calls; remove cost")
        if self.cost_from_result is not None:
            raise ValueError(f"cost_from_result has no effect with rate: {self.rate}, which counts calls; remove it")
        if self.rate == SERVICE and self.burst != 1:
            raise ValueError("burst has no effect with rate: service; remove burst")
        if self.is_adaptive and self.share == "redis":
            raise ValueError("a rate that is adaptive is found by one machine; use share: machine, or state the rate")
        return self

    @model_validator(mode="after")
    def _check_refunds(self) -> Self:
        if self.refund_on != type(self).model_fields["refund_on"].default and not self.is_estimated:
            raise ValueError(
                "refund_on would have no effect, as a call costs what cost says; it is for limits whose cost is an "
                "estimate: one that depends on the call, or is followed by cost_from_result"
            )
        return self

    @model_validator(mode="after")
    def _check_reserve(self) -> Self:
        if not self.reserve or self.limits:
            return self
        if callable(self.cost) or isinstance(self.cost, str) or self.cost_from_result is not None:
            raise ValueError("reserve has no effect where the cost of a call depends on the call; remove either")
        if min(self.reserve, self.burst - self.reserve) < 2 * self.cost:
            raise ValueError(
                f"reserve ({self.reserve}) has no effect with a burst of {self.burst}: both reserve and the rest of "
                "burst have to hold the permits of two calls at least"
            )
        return self
