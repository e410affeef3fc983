"""Functions bound in place: the bound function replaces the original in its module or class."""

from __future__ import annotations

import builtins
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from opero.binding.binding import Binding
from opero.dataclass import dataclass
from opero.errors import ConfigError, message_of, nearest
from opero.runtime.forking import RenewedLock


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a function was found, and what replaced it."""

    owner: Any
    attribute: str
    original: Any
    own: bool
    """Whether the owner itself defines it; a class may inherit it."""
    bound: Any


class ImportBindings:
    """The functions that one registry has bound in place."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        self._lock = RenewedLock()  # reentrant: importing a module may bind others

    def bind(self, target: str, bind: Callable[[Any], Any]) -> Any:
        """Replace a function by a bound one.

        Args:
            target: "module:function" or "module:Class.method".
            bind: binds the original.

        Raises:
            ConfigError: the target does not exist, is bound already, or cannot be replaced.
        """
        with self._lock:
            if target in self._places:
                raise ConfigError(f"{target} is already bound; call unbind_import({target!r}) first")
            owner, attribute = _find(target)
            original = _original(target, owner, attribute)
            own = attribute in vars(owner)
            bound = bind(original)
            try:
                setattr(owner, attribute, bound)
            except (AttributeError, TypeError) as error:
                raise ConfigError(
                    f"{target} cannot be replaced: {message_of(error)}; bind it and call the function that bind() "
                    "returns"
                ) from error
            self._places[target] = _Place(owner, attribute, original, own, bound)
            return getattr(owner, attribute)

    def unbind(self, target: str) -> None:
        """Restore the original.

        Raises:
            ConfigError: it is not bound here, or has been replaced since.
        """
        with self._lock:
            if target not in self._places:
                raise ConfigError(f"{target} was not bound by bind_import{nearest(target, self._places)}")
            place = self._places[target]
            if inspect.getattr_static(place.owner, place.attribute, None) is not place.bound:
                raise ConfigError(f"{target} has been replaced since it was bound; restore the bound function first")
            if place.own:
                setattr(place.owner, place.attribute, place.original)
            else:
                delattr(place.owner, place.attribute)
            del self._places[target]


def _find(target: Any) -> tuple[Any, str]:
    """Return the module, class or instance that has a function, and its name there."""
    if not isinstance(target, str):
        kind = type(target).__name__
        raise ConfigError(f'bind_import expects "module:function", not a value of type {kind}')
    module, colon, path = target.partition(":")
    *outer, attribute = path.split(".")
    if not colon or not all([*module.split("."), *outer, attribute]):
        raise ConfigError(f'{target!r} is not a function\'s name; use "module:function" or "module:Class.method"')
    try:
        owner: Any = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(f"{target}: {_describe(error)}") from error
    for name in outer:
        owner = _attribute(target, owner, name)
    return owner, attribute


def _attribute(target: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        where = getattr(owner, "__name__", type(owner).__name__)  # not the repr, which may contain a secret
        raise ConfigError(f"{target}: {where} has no {name!r}{nearest(name, dir(owner))}") from error
    except Exception as error:  # a module's __getattr__ may import others
        raise ConfigError(f"{target}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {error}"


def _original(target: str, owner: Any, attribute: str) -> Any:
    """Return the function to bind: as its class or module has it; of an instance, its bound method."""
    found = _attribute(target, owner, attribute)
    if isinstance(getattr(found, "binding", None), Binding):
        raise ConfigError(f"{target} is already bound, by a decorator or another registry")
    if isinstance(found, type):
        raise ConfigError(
            f"{target} is a class, and binding it in place would break isinstance: name one of its methods, or bind "
            "the class and call the function that bind() returns"
        )
    if owner is builtins:
        raise ConfigError(
            f"{target} is a builtin that all code uses and cannot be replaced; bind it and call the function that "
            "bind() returns"
        )
    if not hasattr(owner, "__dict__"):
        kind = type(owner).__name__
        raise ConfigError(
            f"{target} cannot be replaced: {kind} has slots; bind it and call the function that bind() returns"
        )
    # A module's __getattr__ may create the function; an instance's method already has its instance.
    original = inspect.getattr_static(owner, attribute, found) if isinstance(owner, type | ModuleType) else found
    if not callable(original) and not isinstance(original, classmethod):
        kind = type(original).__name__
        raise ConfigError(f"{target} is a value of type {kind}, which is not callable; name a function or method")
    if isinstance(owner, type) and not hasattr(original, "__get__"):
        return staticmethod(original)  # a callable object does not receive the instance, but a function would
    return original
