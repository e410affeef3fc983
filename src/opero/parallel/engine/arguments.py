"""The arguments of a map: the items among them, and whether the others can be what every call receives."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from opero.errors import message_of, nearest
from opero.parallel.engine.source import is_iterable, length_of

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.parallel.engine.batching import BatchRule
    from opero.parallel.engine.settings import FixedArguments

SCALARS = ("int", "float", "complex", "bool", "str", "bytes", "Decimal", "date", "datetime", "timedelta", "UUID")
"""Classes of single values: a parameter that is annotated as one of them takes no sequence of such values."""


class Mapped(Protocol):
    """What is known of a function that is mapped, as a `Mapper` knows it."""

    @property
    def binding(self) -> Binding: ...
    @property
    def position(self) -> int: ...
    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]: ...
    @property
    def signature(self) -> inspect.Signature | None: ...


def taken_items(mapped: Mapped, args: tuple[Any, ...], kwargs: dict[str, Any], rule: BatchRule | None) -> Any:
    """Return the items among the arguments of a call; they are taken out of `kwargs` if they are there.

    Args:
        mapped: the function.
        args, kwargs: the arguments of the call.
        rule: knows the parameter that receives an item, by whose name the items may be passed; None: they may not.

    Raises:
        TypeError: there are none, or they cannot be mapped.
    """
    name, position = mapped.binding.name, mapped.position
    parameter = None if rule is None else "items" if rule.parameter is None else rule.parameter.name
    if len(args) > position:
        items = args[position]
    elif parameter is not None and parameter in kwargs:
        items = kwargs.pop(parameter)
    else:
        raise TypeError(f"{name} is mapped over items and got none: pass an iterable")
    is_async = isinstance(items, AsyncIterable) and not is_iterable(items)
    if problem := _problem(items, is_async=is_async):
        raise TypeError(f"{name} is mapped over items and {problem}")
    if is_async and mapped.binding.kind != "async":
        raise TypeError(
            f"{name} is a sync function and cannot wait for the async iterable {items!r:.60}; "
            "collect its items first, or map an async function"
        )
    return items


def _problem(items: Any, *, is_async: bool) -> str | None:
    """Why something has no items, or not those that its user expects, and what to pass instead."""
    kind = type(items).__name__
    if isinstance(items, str | bytes | bytearray):
        return f"got the bare {kind} {items!r:.60}; wrap it in a list, or pass list(text) for its characters"
    if isinstance(items, Mapping):
        return f"got a {kind}, whose items could be its keys or its values: pass list(it), it.values() or it.items()"
    for method, call in (("itertuples", "itertuples(index=False)"), ("iter_rows", "iter_rows(named=True)")):
        if hasattr(type(items), "columns") and hasattr(type(items), method):  # a frame of pandas, dask or polars
            return f"got a {kind}, which iterates over its columns: pass its rows, frame.{call}"
    if hasattr(type(items), "columns") and hasattr(type(items), "collect"):  # a lazy frame of polars
        return f"got a {kind}, which has no rows yet: pass those of frame.collect().iter_rows(named=True)"
    if getattr(items, "ndim", None) == 0 and not is_async:  # of numpy, torch, jax
        return f"got a {kind} without dimensions, which has no items: pass array.reshape(1)"
    if not is_async and not is_iterable(items):
        return f"{items!r:.60} is not iterable; pass a list"
    return None


def check_fixed(mapped: Mapped, fixed: FixedArguments, items: Any, options: Sequence[str]) -> None:
    """Check the arguments that all calls share, before anything is sent.

    Args:
        mapped: the function.
        fixed: the arguments.
        items: what the function is mapped over.
        options: the names of a map's own options, for hints.

    Raises:
        TypeError: the function does not accept them, or one of them seems to be meant as items, too.
    """
    if not fixed.spreads:
        _check_not_items(mapped, fixed, items)
    kinds, kwargs = {each.kind for each in mapped.parameters.values()}, fixed.kwargs or {}
    if mapped.signature is None or inspect.Parameter.VAR_KEYWORD in kinds:  # its `bind` refuses legal calls
        return
    try:
        if fixed.spreads:  # an item may have any number of arguments
            mapped.signature.bind_partial(*fixed.before, **kwargs)
        else:
            mapped.signature.bind(*fixed.before, None, *fixed.after, **kwargs)
    except TypeError as error:
        unknown = next((name for name in kwargs if name not in mapped.parameters), None)
        hint = "" if unknown is None else nearest(unknown, [*mapped.parameters, *options])
        if not fixed.spreads and any(_is_sequence(each) for each in fixed.after):
            hint = f"; for calls with one item of each of several iterables, {STARMAP.format(mapped.binding.name)}"
        raise TypeError(f"{mapped.binding.name}, mapped over items, {message_of(error)}{hint}") from None


STARMAP = "use {}.starmap(zip(...))"


def _check_not_items(mapped: Mapped, fixed: FixedArguments, items: Any) -> None:
    """Refuse `f.map(xs, ys)`, where each call would receive one x and all ys.

    That is meant if `ys` is passed by keyword, or if its parameter is annotated as more than a single value.
    """
    positional = [each for each in mapped.parameters.values() if each.kind not in (each.KEYWORD_ONLY, each.VAR_KEYWORD)]
    rest = next((each for each in positional if each.kind is each.VAR_POSITIONAL), None)
    for place, value in enumerate(fixed.after, len(fixed.before) + 1):
        parameter = positional[place] if place < len(positional) else rest
        if not _is_sequence(value) or (parameter is None and mapped.signature is not None):
            continue
        text = _annotation(parameter)
        is_single = text in SCALARS
        if not is_single and (text is not None or length_of(items) != length_of(value) or len(value) < 2):
            continue
        if parameter is not None and _is_sequence(parameter.default):
            continue
        name = mapped.binding.name
        what, way = "a further argument", ""
        if parameter is not None and parameter is not rest:
            what = f"{parameter.name!r}"
            way = f", or pass {parameter.name}= by keyword if each is meant to get all of them"
        raise TypeError(
            f"{name} is mapped over its first argument only, and every call would get all {len(value)} values of "
            f"{what}; for calls with one of each, {STARMAP.format(name)}{way}"
        )


def _annotation(parameter: inspect.Parameter | None) -> str | None:
    """The name of the class that a parameter is annotated with; "" for another annotation, None if it says nothing."""
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return None
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    name: str = text.rpartition(".")[2]
    return None if name in ("Any", "object") else name


def _is_sequence(value: Any) -> bool:
    """Whether something looks like a sequence of values: a list, a tuple, a range, an array, a column."""
    if isinstance(value, list | tuple | range):
        return True
    return getattr(value, "ndim", None) == 1 and length_of(value) is not None
