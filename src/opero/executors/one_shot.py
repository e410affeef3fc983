"""Warns of arguments that can be read only once, when another attempt is about to receive them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from opero.runtime.functions import full_name, short_name, signature_of
from opero.runtime.log import log


class OneShotArguments:
    """Warns once for a function if an argument is its own iterator: what the failed attempt has read of it is gone.

    Args:
        function: the function.
        is_method: whether its first argument is the instance, which may be an iterator by itself.
    """

    __slots__ = ("_first", "_function", "_has_warned")

    def __init__(self, function: Callable[..., Any], *, is_method: bool) -> None:
        self._function = function
        self._first = int(is_method)
        self._has_warned = False

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Warn if one of the arguments may have been read in part."""
        if self._has_warned:
            return
        named: list[tuple[Any, Any]] = [*[*enumerate(args)][self._first :], *kwargs.items()]
        for place, value in named:
            if not may_be_half_read(value):
                continue
            self._has_warned = True
            log(
                "argument_read_once",
                "%s: argument %s (%s) can be read only once, and another attempt gets what the failed one has left of "
                "it; pass a list, or what the function can open itself",
                short_name(self._function),
                self._name(place),
                type(value).__name__,
                function=full_name(self._function),
                argument=self._name(place),
            )
            return

    def _name(self, place: int | str) -> str:
        signature = signature_of(self._function)
        if isinstance(place, int) and signature is not None:
            parameters = list(signature.parameters.values())
            names = [
                each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
            ]
            if place < len(names):
                return repr(names[place])
        return repr(place) if isinstance(place, str) else str(place + 1)


def may_be_half_read(value: Any) -> bool:
    """Return whether a value is its own iterator, such as a generator, a file or a `map`, and may have been begun."""
    cls = type(value)
    if not (hasattr(cls, "__next__") or hasattr(cls, "__anext__")):  # as most: quicker than what follows
        return False
    if inspect.isgenerator(value):
        return inspect.getgeneratorstate(value) != inspect.GEN_CREATED
    # A database cursor is an iterator of its last results, and is not read but executed.
    if not isinstance(value, Iterator | AsyncIterator) or hasattr(value, "execute"):
        return False
    try:
        return (iter(value) if isinstance(value, Iterator) else aiter(value)) is value
    except Exception:  # noqa: BLE001  # a closed file, or a user's class
        return False
