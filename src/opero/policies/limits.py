"""One of the limits of a rate limit policy: requests, tokens, and what else a service counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import BeforeValidator, PlainSerializer, ValidationError, WithJsonSchema, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.policies.base import StrictModel
from opero.policies.names import IMPORT_TEXT, NAME, PARAMETER_TEXT, check_call, import_path, resolve
from opero.policies.quantities import (
    LONGEST,
    POSITIVE_NUMBER_TEXT,
    SPACE,
    PositiveCount,
    StatedRate,
    fits,
    named_schema,
    parse_number,
    quoted,
)
from opero.runtime.functions import short_name

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH_TEXT = rf"^{SPACE}({NAME}|[0-9]{{1,9}})(\.({NAME}|[0-9]{{1,9}}))*{SPACE}$"
"""Where a value is within a result: names of attributes or keys, and positions."""
REQUESTS = "requests"


def _cost(value: Any) -> Any:
    if fits(IMPORT_TEXT, value):
        value = resolve(value.strip())
    if callable(value):
        return value
    if fits(PARAMETER_TEXT, value):
        return value.strip()
    amount = parse_number(value)
    if amount is None or amount <= 0:
        raise ValueError(f"{quoted(value)} is not a cost: use a number > 0, the name of a parameter, or a function")
    return amount


def _cost_from_result(value: Any) -> Any:
    if value is None:
        return None
    if fits(IMPORT_TEXT, value):
        value = resolve(value.strip())
    if callable(value):
        check_call(value, "the result")
        return value
    if fits(PATH_TEXT, value):
        return value.strip()
    raise ValueError(
        f"{quoted(value)} says nothing about a result: use a path such as usage.total_tokens, or a function of the "
        "result"
    )


def _name(value: Any) -> Any:
    if value is None or fits(NAME_TEXT, value):
        return value if value is None else value.strip()
    raise ValueError(f"{quoted(value)} is not the name of a limit: use letters, digits, _ and -, such as tokens")


NAME_TEXT = rf"^{SPACE}[A-Za-z_][A-Za-z0-9_-]{{0,99}}{SPACE}$"
_TEXT = PlainSerializer(lambda cost: import_path(cost) if callable(cost) else cost, when_used="json")

Cost = Annotated[
    Any,
    BeforeValidator(_cost),
    named_schema(
        "Cost",
        [
            {"type": "number", "exclusiveMinimum": 0},
            *({"type": "string", "pattern": text} for text in (POSITIVE_NUMBER_TEXT, PARAMETER_TEXT, IMPORT_TEXT)),
        ],
        1,
        "tokens",
        "app.costs:of_call",
    ),
    _TEXT,
]
CostFromResult = Annotated[
    Any,
    BeforeValidator(_cost_from_result),
    named_schema(
        "CostFromResult",
        [{"type": "null"}, *({"type": "string", "pattern": text} for text in (PATH_TEXT, IMPORT_TEXT))],
        "usage.total_tokens",
        "app.costs:of_result",
    ),
    _TEXT,
]
LimitName = Annotated[
    str | None,
    BeforeValidator(_name),
    named_schema("LimitName", [{"type": "string", "pattern": NAME_TEXT}, {"type": "null"}], "tokens"),
]


def check_permits(rate: float, **permits: Any) -> None:
    """Check that numbers of permits fall due within 100 years.

    Raises:
        ValueError: they do not.
    """
    for name, number in permits.items():
        if isinstance(number, int | float) and number > rate * LONGEST:
            raise ValueError(
                f"{name} ({number}) is more than the permits of 100 years at {rate:g}/s; lower {name} or raise rate"
            )


class Limit(StrictModel):
    """One of several limits that a call takes permits from, all together or none:
    `rate_limit: [{rate: 500/min}, {rate: 60000/min, cost: tokens}]`.

    A short form: `500/min` in the list means `{rate: 500/min}`.

    Attributes:
        rate: permits per second; a number, or text such as "50/s", "1000/min", "100/30s". Required.
        burst: how many unused permits may accumulate. Default 1.
        cost: permits that a call takes: a number, the name of the parameter that holds it, or a function of the
            call's arguments (in YAML "module:function"). Default 1.
        cost_from_result: what a call has really cost, of which `cost` is an estimate: where the result has it, such
            as "usage.total_tokens" (attributes, keys and positions), or a function of the result (in YAML
            "module:function"). The difference is given back, or taken besides. Default None: `cost` is exact, unless
            the function calls `opero.settle`.
        name: the name of the limit in events, errors, statistics and metrics, and for `opero.settle`. Default: the
            parameter or function of `cost`, else "requests"; with its rate where several limits would have one name.
    """

    rate: StatedRate
    burst: PositiveCount = 1
    cost: Cost = 1.0
    cost_from_result: CostFromResult = None
    name: LimitName = None

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            rate: float | str,
            burst: int = 1,
            cost: float | str | Callable[..., float] = 1.0,
            cost_from_result: str | Callable[[Any], float | None] | None = None,
            name: str | None = None,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        check_permits(self.rate, burst=self.burst, cost=self.cost)
        return self

    @property
    def fastest(self) -> float:
        """As `rate`: see `RateLimitPolicy.fastest`."""
        return self.rate

    @property
    def is_estimated(self) -> bool:
        """Whether calls may turn out to have cost something else than `cost` says."""
        return self.cost_from_result is not None or not isinstance(self.cost, float)

    @property
    def usual_name(self) -> str:
        """The name that it has if no other limit would have it too."""
        if self.name is not None:
            return self.name
        if isinstance(self.cost, float):
            return REQUESTS
        return self.cost if isinstance(self.cost, str) else re.sub(r"\W", "_", short_name(self.cost))


if TYPE_CHECKING:
    LimitsLike = Sequence[Limit | Mapping[str, Any] | float | str]
    """The types that code may pass for several limits."""


def _within(index: int, error: Any) -> InitErrorDetails:
    """Return an error of one limit as one of the list. A missing field is an error there, as nothing is merged in."""
    text = str(error["msg"]).removeprefix("Value error, ")
    if text.startswith("Input should"):
        text = text.replace("Input", quoted(error["input"]), 1)
    kind = "unknown_field" if error["type"] == "unknown_field" else "element"
    return InitErrorDetails(
        type=PydanticCustomError(kind, "{text}", {**error.get("ctx", {}), "text": text}),
        loc=(index, *error["loc"]),
        input=error["input"],
    )


def _limits(values: Any) -> tuple[Limit, ...]:
    if values is None:
        return ()
    if not isinstance(values, list | tuple):
        raise ValueError(
            f"{quoted(values)} is not a list of limits: use a list, such as [500/min, {{rate: …, cost: …}}]"
        )
    found: list[Limit] = []
    wrong: list[InitErrorDetails] = []
    for index, value in enumerate(values):
        try:
            found.append(Limit.model_validate(value if isinstance(value, Limit | Mapping) else {"rate": value}))
        except ValidationError as error:
            wrong += [_within(index, each) for each in error.errors(include_url=False)]
    if wrong:
        raise ValidationError.from_exception_data("limits", wrong)
    names = [each.name for each in found if each.name is not None]
    if twice := [each for each in names if names.count(each) > 1]:
        raise ValueError(f"two limits have the name {twice[0]!r}; give them different ones")
    return tuple(found)


def names_of_limits(limits: Sequence[Limit]) -> tuple[str, ...]:
    """Return the names of a policy's limits, all of them different."""
    usual = [each.usual_name for each in limits]
    found: list[str] = []
    for limit, name in zip(limits, usual, strict=True):
        unique = name if usual.count(name) == 1 or name == limit.name else f"{name}-{limit.rate:g}/s"
        found.append(unique if unique not in found else f"{unique}-{len(found)}")
    return tuple(found)


_RATE: Any = next(each for each in get_args(StatedRate) if isinstance(each, WithJsonSchema)).json_schema
Limits = Annotated[
    tuple[Limit, ...],
    BeforeValidator(_limits),
    named_schema(
        "Limits",
        [{"type": "array", "items": {"anyOf": [{"title": "Limit", "type": "object"}, _RATE]}}, {"type": "null"}],
        ["500/min", {"rate": "60000/min", "cost": "tokens"}],
    ),
]
