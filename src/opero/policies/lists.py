"""Validation of list fields that reports all invalid elements at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["each_of"]

T = TypeVar("T")


def each_of(values: Iterable[object], check: Callable[[object], T]) -> list[T]:
    """Return what `check` returns for each value.

    Raises:
        pydantic.ValidationError: `check` raised ValueError for some values; it lists each with its index.
    """
    found: list[T] = []
    wrong: list[InitErrorDetails] = []
    for index, value in enumerate(values):
        try:
            found.append(check(value))
        except ValueError as error:
            kind = PydanticCustomError("element", "{text}", {"text": str(error)})
            wrong.append(InitErrorDetails(type=kind, loc=(index,), input=value))
    if wrong:
        raise ValidationError.from_exception_data("list", wrong)
    return found
