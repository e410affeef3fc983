"""Fields that hold several values of one sort: all that is wrong with them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["each_of"]

T = TypeVar("T")


def each_of(values: Iterable[object], check: Callable[[object], T]) -> list[T]:
    """What `check` makes of each value.

    Raises:
        pydantic.ValidationError: `check` raised a ValueError for some; it tells each of them, with its index.
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
