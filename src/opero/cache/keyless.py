"""Classes whose instances cannot be part of a key in a shared store, as far as that is visible without an instance."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from types import FunctionType, MethodType
from typing import Any, get_type_hints

from opero.cache.keys import is_value
from opero.cache.records import compares_by_identity
from opero.runtime.functions import signature_of

OWN = "__opero_key__"
BY_NAME = (FunctionType, MethodType, type)
"""What other processes know by its name."""


def keyless_parameter(function: Callable[..., Any], *, is_method: bool, ignore: Collection[str]) -> str:
    """Return which argument of each call has no key in a shared store, and how to give it one; "" if there is none.

    Args:
        function: the function whose arguments become keys.
        is_method: whether the first parameter is the instance of a class.
        ignore: the names of parameters that are not part of the key.
    """
    signature = signature_of(function)
    if signature is None:
        return ""
    try:
        hints = get_type_hints(function)
    except Exception:  # noqa: BLE001  # names that exist for type checkers only, or anything a module does
        hints = {}
    for position, parameter in enumerate(signature.parameters.values()):
        name = parameter.name
        if name in ignore or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if position == 0 and is_method:
            owner = _owner(function)
            if owner is not None and is_keyless(owner, lambda kind: not is_value(kind)):
                return _told(f"its instance, a {owner.__qualname__},", owner, "cache_key")
        elif (
            isinstance(kind := hints.get(name), type)
            and parameter.default is parameter.empty
            and is_keyless(kind, compares_by_identity)
        ):
            return _told(f"its argument {name!r}, a {kind.__qualname__},", kind, f"cache: {{ignore: [{name}]}}")
    return ""


def _told(what: str, kind: type, otherwise: str) -> str:
    return (
        f"{what} compares by identity, so it cannot be part of a key in a store shared between processes: define "
        f"`{OWN}` (a value, or a method that returns it) in {kind.__name__}, make it a frozen dataclass, or set "
        f"{otherwise}"
    )


def is_keyless(kind: type, lacks_value: Callable[[type], bool]) -> bool:
    """Return whether no instance of a class, or of a subclass that is known, can be part of a key.

    Args:
        kind: the class.
        lacks_value: whether instances of a class have no value that could be part of a key.
    """
    if kind is object or kind.__module__ == "typing" or issubclass(kind, BY_NAME):
        return False
    concrete = [each for each in _with_subclasses(kind) if not _is_abstract(each)]
    return bool(concrete) and all(lacks_value(each) and not _may_have_own(each) for each in concrete)


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: list[type] = kind.__subclasses__()
    for each in subclasses:
        yield from _with_subclasses(each)


def _is_abstract(kind: type) -> bool:
    return inspect.isabstract(kind) or getattr(kind, "_is_protocol", False) or kind.__module__ == "collections.abc"


def _may_have_own(kind: type) -> bool:
    """Return whether instances may have a key, or a name, of their own, which the class does not have."""
    for each in kind.__mro__[:-1]:
        if each.__module__.partition(".")[0] == "pydantic":  # whose `__getattr__` has no key
            continue
        content = vars(each)
        if not content.keys().isdisjoint((OWN, "__call__", "__getattr__", "__getattribute__")):
            return True
        if OWN in content.get("__annotations__", ()) or OWN in content.get("__slots__", ()):
            return True
        if any(OWN in value.__code__.co_names for value in content.values() if isinstance(value, FunctionType)):
            return True
    return False


def _owner(function: Any) -> type | None:
    """Return the class in whose body a method is defined; None if its module does not have it."""
    path, _, name = function.__qualname__.rpartition(".")
    found: Any = sys.modules.get(function.__module__)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or isinstance(vars(found).get(name), classmethod):
        return None
    return found if name in vars(found) else None
