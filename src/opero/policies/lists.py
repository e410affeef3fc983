"""Validation of list fields that reports all invalid elements at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from opero.errors import message_of

T = TypeVar("T")


def each_of(values: Iterable[object], check: Callable[[object], T], hidden: str | None = None) -> list[T]:
    """Return what `check` returns for each value.

    Args:
        values: the values.
        check: checks one of them.
        hidden: what errors show instead of a value that may be secret.

    Raises:
        pydantic.ValidationError: `check` raised ValueError for some values; it lists each with its index.
    """
    found: list[T] = []
    wrong: list[InitErrorDetails] = []
    for index, value in enumerate(values):
        try:
            found.append(check(value))
        except ValueError as error:
            kind = PydanticCustomError("element", "{text}", {"text": message_of(error)})
            wrong.append(InitErrorDetails(type=kind, loc=(index,), input=value if hidden is None else hidden))
    if wrong:
        raise ValidationError.from_exception_data("list", wrong)
    return found
