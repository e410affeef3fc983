"""Keys of values whose classes are not built in: by their fields, their items, or as they compare or pickle."""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping, Set
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from uuid import UUID

from opero.cache.content import Freezer, Hashed, exact, freeze, items_of, pairs_of, reduced, text
from opero.cache.instances import token_of

VALUES = (datetime, time, date, timedelta, Decimal, Fraction, UUID, str, int, float, bytes, bytearray)
"""Subclasses of these may have more to them than what they compare."""


def freezer_of(kind: Any) -> Freezer:
    """Return what freezes instances of a class. It must not refer to the class, which it would keep alive."""
    if issubclass(kind, type):
        return exact
    if hasattr(kind, "__opero_key__"):
        return _own_key
    if issubclass(kind, Enum):
        return _enum
    for special in (_freezer_of_mapping, _freezer_of_record):
        found = special(kind)
        if found is not None:
            return found
    if issubclass(kind, PurePath) and kind.__module__.partition(".")[0] == "pathlib":
        return text
    if issubclass(kind, Set):
        return _with_state(kind, lambda value: frozenset([freeze(each) for each in value]))
    if issubclass(kind, list | tuple):
        return _with_state(kind, items_of)
    if issubclass(kind, MethodType):
        return _method
    if issubclass(kind, BuiltinFunctionType | ModuleType):
        return exact
    if issubclass(kind, VALUES):
        return reduced
    if kind.__eq__ is object.__eq__:
        return _identity
    if kind.__hash__ is None:
        return reduced
    return _hashed if type(kind.__hash__) is FunctionType else _opaque


def compares_by_identity(kind: Any) -> bool:
    """Return whether instances of a class have no value that a key could have in their place."""
    return freezer_of(kind) is _identity


def _own_key(value: Any) -> Hashable:
    own = value.__opero_key__
    return type(value), freeze(own() if callable(own) else own)


def _identity(value: Any) -> Hashable:
    return type(value), token_of(value)


def _method(value: Any) -> Hashable:
    instance = value.__self__
    own = freeze(instance) if isinstance(instance, type | ModuleType) else token_of(instance)
    return MethodType, own, freeze(value.__func__)


def _opaque(value: Any) -> Hashable:
    try:
        hash(value)
    except (TypeError, ValueError):  # as it holds something that has none
        return reduced(value)
    return type(value), value


def _hashed(value: Any) -> Hashable:
    try:
        number = hash(value)
    except (TypeError, ValueError):
        return reduced(value)
    return type(value), Hashed(value, number)


def _with_state(kind: Any, content: Callable[[Any], Hashable]) -> Freezer:
    """Return what freezes a subclass of a container: the items, and the attributes if instances can have some."""
    if not kind.__dictoffset__:
        return lambda value: (type(value), content(value))
    return lambda value: (type(value), content(value), *((_state(value),) if vars(value) else ()))


def _state(value: Any) -> Hashable:
    return frozenset(pairs_of(vars(value)))


def _freezer_of_mapping(kind: Any) -> Freezer | None:
    if issubclass(kind, OrderedDict):
        return _with_state(kind, lambda value: tuple(pairs_of(value)))
    if issubclass(kind, defaultdict):
        return _with_state(kind, lambda value: (freeze(value.default_factory), frozenset(pairs_of(value))))
    if issubclass(kind, dict):
        return _with_state(kind, lambda value: frozenset(pairs_of(value)))
    if issubclass(kind, Mapping):
        return lambda value: (type(value), frozenset(pairs_of(value)))
    return None


def _freezer_of_record(kind: Any) -> Freezer | None:
    """Return what freezes a class whose equality is that of its fields: a dataclass, pydantic model or attrs class."""
    if kind.__hash__ is not None and kind.__eq__ is object.__eq__:
        return None
    model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    if model is not None and issubclass(kind, model):
        return _model if kind.__eq__ in (model.__eq__, sys.modules["pydantic"].RootModel.__eq__) else None
    file = getattr(getattr(kind.__eq__, "__code__", None), "co_filename", "")
    if hasattr(kind, "__dataclass_fields__") and file == "<string>":
        return _of_fields([field.name for field in fields(kind) if field.compare])
    if hasattr(kind, "__attrs_attrs__") and file.startswith("<attrs generated"):
        if any(each.eq_key is not None for each in kind.__attrs_attrs__):
            return None
        return _of_fields([each.name for each in kind.__attrs_attrs__ if each.eq])
    return None


def _of_fields(names: list[str]) -> Freezer:
    """Return generated code: a record is the usual argument that is not a plain value."""
    parts = [f"(x if type(x := value.{name}) is str or type(x) is int else freeze(x))" for name in names]
    space: dict[str, Any] = {"freeze": freeze}
    exec(f"def frozen(value):\n    return (type(value), {', '.join(parts)})", space)
    frozen: Freezer = space["frozen"]
    return frozen


def _model(value: Any) -> Hashable:
    """Freeze a pydantic model: which of its fields have been set makes no difference to its content."""
    held = value.__dict__
    names = type(value).model_fields
    content = tuple([each if type(each) is str or type(each) is int else freeze(each) for each in map(held.get, names)])
    extra, private = value.__pydantic_extra__, value.__pydantic_private__
    if extra or private:
        return type(value), content, freeze(extra or None), freeze(private or None)
    return type(value), content


def _enum(value: Any) -> Hashable:
    return type(value), value._name_ if value._name_ is not None else freeze(value._value_)
