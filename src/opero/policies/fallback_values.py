"""The types of what a fallback policy says about the values of its argument."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, SecretStr, ValidationError, WithJsonSchema, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.errors import message_of
from opero.policies.lists import each_of
from opero.policies.merging import FLAG_TEXT, is_false
from opero.policies.quantities import (
    DURATION_TEXT,
    HIDDEN,
    POSITIVE_NUMBER_TEXT,
    fits,
    named_schema,
    parse_duration,
    parse_number,
    quoted,
)
from opero.policies.types import one_of
from opero.runtime.named_secrets import SecretFinder, resolved

REMEMBER = 300.0
"""Seconds for which a denied value is set aside, unless the policy says otherwise."""

Orders = Literal["in_order", "round_robin", "weighted", "least_loaded"]
Order = Annotated[Orders, one_of(Orders)]


def _remember(value: object) -> float:
    if isinstance(value, bool) or fits(FLAG_TEXT, value):
        return 0.0 if is_false(value) else REMEMBER
    seconds = parse_duration(value)
    if seconds < 0:
        raise ValueError(f"{seconds:g} is invalid: use a duration >= 0, or false")
    return seconds


Remember = Annotated[
    float,
    BeforeValidator(_remember),
    named_schema(
        "Remember",
        [
            {"type": "boolean"},
            {"type": "string", "pattern": FLAG_TEXT},
            {"type": "number", "minimum": 0},
            {"type": "string", "pattern": DURATION_TEXT},
        ],
        "5m",
        False,
    ),
]


def _weight(value: object) -> float:
    number = parse_number(value, POSITIVE_NUMBER_TEXT)
    if number is None or number <= 0:
        raise ValueError(f"{quoted(value)} is not a weight: use a number > 0")
    return number


def _weights(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{quoted(value)} is not a list of weights: use one number for each value, such as [3, 1]")
    return tuple(each_of(value, _weight))


_WEIGHT = [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": POSITIVE_NUMBER_TEXT}]
Weights = Annotated[
    tuple[float, ...],
    BeforeValidator(_weights),
    named_schema("Weights", [{"type": "array", "items": {"anyOf": _WEIGHT}}], [3, 1]),
]


def _wrong(text: str) -> ValidationError:
    """Make an error that does not show the input, as pydantic's own would."""
    kind = PydanticCustomError("fallback_values", "{text}", {"text": text})
    return ValidationError.from_exception_data("values", [InitErrorDetails(type=kind, input=HIDDEN)])


def _values(value: object) -> tuple[SecretStr, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(f'values must be a list, such as ["secret:API_KEY"], not {type(value).__name__}')
    found: list[SecretStr] = []
    known: set[str] = set()
    find = SecretFinder()
    for position, each in enumerate(value, 1):
        if not isinstance(each, str | SecretStr):
            raise _wrong(f"value {position} must be text, not {type(each).__name__}; quote it")
        text = each if isinstance(each, str) else each.get_secret_value()
        try:
            text = resolved(text, find) if isinstance(each, str) else text
        except ValueError as error:
            raise _wrong(f"value {position}: {message_of(error)}") from None
        if not text:
            raise _wrong(f"value {position} is empty; set it, or remove it")
        if text in known:
            raise _wrong(f"value {position} is the same as an earlier one; remove it")
        known.add(text)
        found.append(SecretStr(text))
    return tuple(found)


_VALUE = {"type": "string", "minLength": 1, "format": "password", "writeOnly": True}
Values = Annotated[
    tuple[SecretStr, ...],
    WrapValidator(lambda value, handler: handler(_values(value))),
    WithJsonSchema({"type": "array", "items": _VALUE, "uniqueItems": True}),
]
