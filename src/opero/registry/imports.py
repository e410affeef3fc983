"""Functions that are bound where they are: a bound one takes the place of the original in its module or class."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, nearest
from opero.registry.forking import RenewedLock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ImportBindings"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a function was found, and what took its place."""

    owner: Any
    attribute: str
    original: Any
    own: bool
    """The owner itself has it; a class may only inherit it."""
    bound: Any


class ImportBindings:
    """What one registry has bound where it is."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._lock = RenewedLock()  # importing may bind others

    def bind(self, target: str, bind: Callable[[Any], Any]) -> Any:
        """Put the bound function in the place of the original.

        Raises:
            ConfigError: there is nothing of that name, it is bound already, or its owner refuses.
        """
        with self._lock:
            if target in self._places:
                raise ConfigError(f"{target} is bound already; unbind_import({target!r}) first")
            owner, attribute = _find(target)
            original = inspect.getattr_static(owner, attribute)
            if hasattr(getattr(owner, attribute), "binding"):
                raise ConfigError(f"{target} is bound already, by a decorator or another registry")
            own = attribute in vars(owner)
            bound = bind(original)
            try:
                setattr(owner, attribute, bound)
            except (AttributeError, TypeError) as error:
                raise ConfigError(
                    f"{target} cannot be replaced: {error}; bind it and call what bind() gives"
                ) from error
            self._places[target] = _Place(owner, attribute, original, own, bound)
            return getattr(owner, attribute)

    def unbind(self, target: str) -> None:
        """Put the original back.

        Raises:
            ConfigError: it is not bound here, or somebody has replaced it since.
        """
        with self._lock:
            if target not in self._places:
                raise ConfigError(f"{target} was not bound by bind_import{nearest(target, self._places)}")
            place = self._places[target]
            if inspect.getattr_static(place.owner, place.attribute) is not place.bound:
                raise ConfigError(
                    f"{target} has been replaced by something else since it was bound; put that back first"
                )
            if place.own:
                setattr(place.owner, place.attribute, place.original)
            else:
                delattr(place.owner, place.attribute)
            del self._places[target]


def _find(target: str) -> tuple[Any, str]:
    """The module or class that has a function, and its name there."""
    module, colon, path = target.partition(":")
    *outer, attribute = path.split(".")
    if not colon or not module or not all([*outer, attribute]):
        raise ConfigError(f'{target!r} names no function; write "module:function" or "module:Class.method"')
    try:
        owner: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{target}: {error}") from error
    for name in [*outer, attribute]:
        if not hasattr(owner, name):
            where = getattr(owner, "__name__", repr(owner))
            raise ConfigError(f"{target}: {where} has no {name!r}{nearest(name, dir(owner))}")
        if name is not attribute:
            owner = getattr(owner, name)
    return owner, attribute
