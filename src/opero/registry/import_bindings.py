"""Functions that are bound where they are: a bound one takes the place of the original in its module or class."""

from __future__ import annotations

import builtins
import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from opero.binding.binding import Binding
from opero.errors import ConfigError, nearest
from opero.runtime.forking import RenewedLock

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
            original = _original(target, owner, attribute)
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
            if inspect.getattr_static(place.owner, place.attribute, None) is not place.bound:
                raise ConfigError(
                    f"{target} has been replaced by something else since it was bound; put that back first"
                )
            if place.own:
                setattr(place.owner, place.attribute, place.original)
            else:
                delattr(place.owner, place.attribute)
            del self._places[target]


def _find(target: Any) -> tuple[Any, str]:
    """The module, class or instance that has a function, and its name there."""
    if not isinstance(target, str):
        kind = type(target).__name__
        raise ConfigError(f'bind_import takes a name, "module:function", and got a value of type {kind}')
    module, colon, path = target.partition(":")
    *outer, attribute = path.split(".")
    if not colon or not all([*module.split("."), *outer, attribute]):
        raise ConfigError(f'{target!r} names no function; write "module:function" or "module:Class.method"')
    try:
        owner: Any = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(f"{target}: {_told(error)}") from error
    for name in outer:
        owner = _attribute(target, owner, name)
    return owner, attribute


def _attribute(target: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        where = getattr(owner, "__name__", type(owner).__name__)  # a repr may show a secret
        raise ConfigError(f"{target}: {where} has no {name!r}{nearest(name, dir(owner))}") from error
    except Exception as error:  # a module's __getattr__ may import others
        raise ConfigError(f"{target}: {_told(error)}") from error


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {error}"


def _original(target: str, owner: Any, attribute: str) -> Any:
    """What stands there and can be bound: a function as its class or module has it, an instance's as a bound method."""
    found = _attribute(target, owner, attribute)
    if isinstance(getattr(found, "binding", None), Binding):
        raise ConfigError(f"{target} is bound already, by a decorator or another registry")
    if isinstance(found, type):
        raise ConfigError(
            f"{target} is a class, and what is bound would be none any more, so isinstance would fail: name a method "
            "of it, or bind the class and call what bind() gives"
        )
    if owner is builtins:
        raise ConfigError(
            f"{target} cannot be replaced: all code, opero's too, uses it; bind it and call what bind() gives"
        )
    if not hasattr(owner, "__dict__"):
        kind = type(owner).__name__
        raise ConfigError(f"{target} cannot be replaced: {kind} has slots; bind it and call what bind() gives")
    # A module's __getattr__ makes what is nowhere yet; an instance's method has the instance already.
    original = inspect.getattr_static(owner, attribute, found) if isinstance(owner, type | ModuleType) else found
    if not callable(original) and not isinstance(original, classmethod):
        kind = type(original).__name__
        raise ConfigError(f"{target} is of type {kind}, which is not callable; name a function or method")
    if isinstance(owner, type) and not hasattr(original, "__get__"):
        return staticmethod(original)  # a callable object does not get the instance, and a function would
    return original
