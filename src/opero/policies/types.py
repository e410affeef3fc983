"""Field types that policies share: flags, choices, statuses and shares of failures."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from opero.errors import described, nearest
from opero.policies.lists import each_of
from opero.policies.merging import FLAG_TEXT, is_false
from opero.policies.names import dotted_name
from opero.policies.quantities import (
    MOST_BITS,
    PERCENT,
    SHARE_PERCENT_TEXT,
    SHARE_TEXT,
    SMALL,
    SPACE,
    approximate_duration,
    fits,
    format_duration,
    named_schema,
    parse_duration,
    parse_number,
    quoted,
    share_of,
)

__all__ = [
    "UNSET",
    "Flag",
    "FlagOrAuto",
    "Jitter",
    "MostFailures",
    "StatusCodes",
    "Unset",
    "approximate_duration",
    "dotted_name",
    "format_duration",
    "one_of",
    "parse_duration",
    "status_code",
]


class Unset:
    """The type of `UNSET`, which means no value where None is a value."""

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"

    def __copy__(self) -> Unset:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Unset:
        return self


UNSET = Unset()


def one_of(choices: Any) -> BeforeValidator:
    """Return a validator that accepts only the choices of a `Literal` and suggests the nearest one."""
    known = get_args(choices)
    listed = ", ".join(map(repr, known))

    def check(value: object) -> object:
        if isinstance(value, str):
            if value not in known:
                hint = nearest(value, known).partition("; known")[0]
                raise ValueError(f"{quoted(value)} is not one of {listed}{hint}")
        elif isinstance(value, bool):
            raise ValueError(f"{value!r} is not one of {listed}; YAML reads yes and on as true, no and off as false")
        else:
            raise ValueError(f"{quoted(value)} is not one of {listed}")
        return value

    return BeforeValidator(check)


def _flag(value: object) -> bool:
    """Also accept text, since variables are text and YAML 1.2 reads yes and on as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and fits(FLAG_TEXT, value):
        return not is_false(value)
    raise ValueError(f"{quoted(value)} is not a boolean: use true or false")


def _flag_or_auto(value: object) -> bool | str:
    if isinstance(value, str) and value == "auto":
        return "auto"
    if isinstance(value, bool) or fits(FLAG_TEXT, value):
        return _flag(value)
    if callable(value):
        raise ValueError(f"{described(value, 60)} is a callback: pass it to the call, f.map(items, progress=callback)")
    raise ValueError(f"{quoted(value)} is invalid: use true, false or 'auto'")


_FLAGS: list[dict[str, Any]] = [{"type": "boolean"}, {"type": "string", "pattern": FLAG_TEXT}]
Flag = Annotated[bool, BeforeValidator(_flag), named_schema("Flag", _FLAGS)]
FlagOrAuto = Annotated[
    bool | Literal["auto"],
    BeforeValidator(_flag_or_auto),
    named_schema("FlagOrAuto", [*_FLAGS, {"const": "auto"}]),
]


JITTERS = ("full", "equal", "none")


def _jitter(value: object) -> object:
    if isinstance(value, bool) or fits(FLAG_TEXT, value):
        return "full" if _flag(value) else "none"
    if isinstance(value, str) and value in JITTERS:
        return value
    hint = nearest(value, JITTERS).partition("; known")[0] if isinstance(value, str) else ""
    raise ValueError(f"{quoted(value)} is invalid: use 'full', 'equal', 'none', true (full) or false (none){hint}")


Jitter = Annotated[
    Literal["full", "equal", "none"],
    BeforeValidator(_jitter),
    named_schema("Jitter", [{"enum": list(JITTERS)}, *_FLAGS]),
]


def _retry_share(value: object) -> float | bool:
    if isinstance(value, bool):
        return DEFAULT_BUDGET if value else False
    try:
        share = share_of(value)
        if 0 < share <= 1:
            return share
    except ValueError:
        if fits(FLAG_TEXT, value):  # after numbers: 1 is all calls
            return DEFAULT_BUDGET if _flag(value) else False
    raise ValueError(
        f'{quoted(value)} is invalid: use a number > 0 and <= 1, such as 0.2, or a percentage ("20%"), or false for '
        "no budget"
    )


DEFAULT_BUDGET = 0.2
"""The share of the calls that may be retries, where there is a budget and nothing else is said."""
RetryShare = Annotated[
    float | Literal[False],
    BeforeValidator(_retry_share),
    named_schema(
        "RetryShare",
        [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "string", "pattern": SHARE_TEXT},
            {"type": "string", "pattern": SHARE_PERCENT_TEXT},
            *_FLAGS,
        ],
        0.2,
        "20%",
        False,
    ),
]
Amplification = Annotated[Literal["guard", "allow"], one_of(Literal["guard", "allow"])]


PERCENT_TEXT = rf"^{SPACE}\+?{PERCENT}$"
FAILURES_TEXT = rf"^{SPACE}\+?([0-9]{{1,20}}|0?\.[0-9]{{1,15}}|{SMALL}){SPACE}$"


def _most_failures(value: object) -> int | float:
    if isinstance(value, str):
        if fits(PERCENT_TEXT, value):
            return float(value.strip().rstrip("%")) / 100
        if fits(FAILURES_TEXT, value):
            return int(value) if value.strip().lstrip("+").isdigit() else float(value)
    elif not isinstance(value, bool):
        if isinstance(value, int) and value >= 0 and value.bit_length() <= MOST_BITS:
            return value
        number = parse_number(value)
        if number is not None and 0 <= number < 1:
            return number
    raise ValueError(f'{quoted(value)} is invalid: use a count (10) or a share (0.05, "5%")')


MostFailures = Annotated[
    int | float,
    BeforeValidator(_most_failures),
    named_schema(
        "MostFailures",
        [
            {"type": "integer", "minimum": 0},
            {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            {"type": "string", "pattern": FAILURES_TEXT},
            {"type": "string", "pattern": PERCENT_TEXT},
        ],
        10,
        0.05,
        "5%",
    ),
]

STATUS_TEXT = rf"^{SPACE}([1-5][xX][xX]|[1-5][0-9][0-9]){SPACE}$"


def status_code(value: object) -> int | str:
    """Return an HTTP status, or a class of statuses such as "5xx", from a number or text."""
    if isinstance(value, str) and fits(STATUS_TEXT, value):
        text = value.strip().lower()
        return text if text.endswith("xx") else int(text)
    number = None if isinstance(value, str) else parse_number(value)
    if number is not None and 100 <= number <= 599 and number == int(number):
        return int(number)
    raise ValueError(f'{quoted(value)} is not an HTTP status: use 100 to 599, or a class such as "5xx"')


def _status_codes(value: object) -> tuple[int | str, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        return (status_code(value),)
    return tuple(dict.fromkeys(each_of(value, status_code)))


_STATUS = [{"type": "integer", "minimum": 100, "maximum": 599}, {"type": "string", "pattern": STATUS_TEXT}]
StatusCodes = Annotated[
    tuple[int | str, ...],
    BeforeValidator(_status_codes),
    named_schema("StatusCodes", [*_STATUS, {"type": "array", "items": {"anyOf": _STATUS}}], 503, [429, "5xx"]),
]
