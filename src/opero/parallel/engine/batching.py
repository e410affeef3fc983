"""The batch rule: a function whose parameter is annotated as a list receives batches."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from opero.runtime.functions import short_name, signature_of


class BatchRule:
    """Decides whether one call of a function receives a batch, which is a list of items, or one item.

    A parameter annotated as a list receives a batch, unless a single item is itself such a list.

    Args:
        function: the function that is mapped.
        position: the position of the parameter that receives the items: 1 after `self`, else 0.
        forced: the option `batch` of the policy; None: the annotation decides.
    """

    def __init__(self, function: Callable[..., Any], position: int, forced: bool | None) -> None:
        signature = signature_of(function)
        parameters = [] if signature is None else list(signature.parameters.values())
        self.parameter = parameters[position] if len(parameters) > position else None
        self.name = short_name(function)
        self.forced = forced
        annotation: Any = inspect.Parameter.empty if self.parameter is None else self.parameter.annotation
        if isinstance(annotation, str) and self.parameter is not None:
            try:
                annotation = typing.get_type_hints(inspect.unwrap(function)).get(self.parameter.name, annotation)
            except Exception:  # noqa: BLE001  # a name that exists for type checkers only: use its text
                annotation = list if annotation.replace("typing.", "").lower().startswith("list") else None
        self.annotation = annotation

    def applies(self, item: Any) -> bool:
        """Whether calls receive batches of such items."""
        if self.forced is not None:
            return self.forced
        members = _members(self.annotation)
        return any((get_origin(each) or each) is list for each in members) and not _fits(item, self.annotation)

    def check(self, results: Any, items: list[Any]) -> list[Any]:
        """The results of one batch, one for each item.

        Raises:
            ValueError: the function did not return a list, or an array, of that length.
        """
        is_list = isinstance(results, list | tuple) or _is_array(results)
        if is_list and len(results) == len(items):
            return list(results)
        kind = "a list" if isinstance(results, list | tuple) else type(results).__name__
        got = f"{kind} of {len(results)}" if is_list else kind
        parameter = self.parameter.name if self.parameter else "?"
        reason = "with batch=True" if self.forced else f"as its parameter {parameter!r} is annotated as a list"
        raise ValueError(
            f"{self.name} received a batch of {len(items)} items and returned {got}: {reason}, a call gets a list of "
            "items and must return a list of equal length; batch=False gives each call one item"
        )


def _is_array(value: Any) -> bool:
    """Whether a value is an array of numpy or one like it, or a column of a frame. A frame has columns, not rows."""
    shape = getattr(value, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 0 and not hasattr(type(value), "columns")


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    return get_args(annotation) if origin in (Union, types.UnionType) else (annotation,)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value matches an annotation, as far as lists are concerned."""
    members = _members(annotation)
    if len(members) > 1:
        return any(_fits(value, each) for each in members)
    annotation = members[0]
    origin = get_origin(annotation) or annotation
    if origin is list:
        inner = get_args(annotation)
        return isinstance(value, list) and (not inner or not value or _fits(value[0], inner[0]))
    if origin is None:
        return value is None
    if origin is Any or isinstance(origin, typing.TypeVar):
        return True
    return isinstance(value, origin) if isinstance(origin, type) else True
