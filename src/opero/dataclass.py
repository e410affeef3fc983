"""The standard `dataclass`, with methods that are made when they are first used.

The standard one compiles up to six methods for each class. For the seventy classes that a first call imports, that took
a fifth of the time in which opero is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, fields
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar

T = TypeVar("T")

__all__ = ["dataclass"]


def _dataclass(
    cls: type[T] | None = None,
    /,
    *,
    frozen: bool = False,
    slots: bool = False,
    kw_only: bool = False,
    eq: bool = True,
    repr: bool = True,  # noqa: A002  # as the standard one
) -> Any:
    """As `dataclasses.dataclass`, with the options that opero uses."""

    def made(cls: type[T]) -> type[T]:
        own = cls.__dict__
        methods: dict[str, Any] = {"__repr__": _repr} if repr and "__repr__" not in own else {}
        later = {"__init__": _init_frozen if frozen else _init}
        if eq:
            if "__eq__" not in own:
                later["__eq__"] = _eq
            if own.get("__hash__") is None:  # it is None in a class that defines `__eq__` alone
                if frozen:
                    later["__hash__"] = _hash
                else:
                    methods["__hash__"] = None
        if frozen:
            methods |= {"__setattr__": _refuse_to_set, "__delattr__": _refuse_to_delete}
            if slots:
                methods |= {"__getstate__": _state, "__setstate__": _set_state}
        for name, method in methods.items():
            setattr(cls, name, method)
        found = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(cls)
        for name, make in later.items():
            setattr(found, name, _Later(found, name, make))
        return found

    return made if cls is None else made(cls)


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    dataclass = _dataclass


class _Later:
    """A method of a class before it is first used; then the real one takes its place."""

    __slots__ = ("_make", "_name", "_owner")

    def __init__(self, owner: type, name: str, make: Callable[[type], Any]) -> None:
        self._owner, self._name, self._make = owner, name, make

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        method = self._make(self._owner)
        setattr(self._owner, self._name, method)
        return method if instance is None else method.__get__(instance)


class _Missing:
    """The default of a parameter whose value a factory makes."""

    def __repr__(self) -> str:
        return "<factory>"


_missing = _Missing()


def _init_frozen(cls: Any) -> Any:
    return _init(cls, assignment="_set(self, {0!r}, {1})")


def _init(cls: Any, assignment: str = "self.{} = {}") -> Any:
    names: dict[str, Any] = {"_missing": _missing, "_set": object.__setattr__}
    by_position, by_name, body = ["self"], ["*"], []
    for each in fields(cls):
        name, value = each.name, each.name
        if each.default_factory is not MISSING:
            names[f"_make_{name}"] = each.default_factory
            value = f"_make_{name}() if {name} is _missing else {name}" if each.init else f"_make_{name}()"
        if each.init:
            default = ""
            if value != name or each.default is not MISSING:
                default = f" = _default_{name}"
                names[f"_default_{name}"] = each.default if value == name else _missing
            (by_name if each.kw_only else by_position).append(f"{name}{default}")
        elif value == name:
            continue  # what `__post_init__` sets
        body.append(assignment.format(name, value))
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    parameters = ", ".join(by_position + (by_name if by_name[1:] else []))
    exec(f"def __init__({parameters}):\n    {'; '.join(body) or 'pass'}", names)
    init = names["__init__"]
    init.__qualname__, init.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    init.__annotations__ = {each.name: each.type for each in fields(cls) if each.init} | {"return": None}
    return init


def _compared(cls: Any) -> Callable[[Any], Any]:
    """Return what finds the values by which instances of a class compare."""
    names = [each.name for each in fields(cls) if each.compare]
    return attrgetter(*names) if names else lambda _: ()


def _eq(cls: type) -> Any:
    compared = _compared(cls)

    def __eq__(self: Any, other: Any) -> Any:  # noqa: N807
        return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__


def _hash(cls: type) -> Any:
    compared = _compared(cls)

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(compared(self))

    return __hash__


@recursive_repr("...")
def _repr(self: Any) -> str:
    shown = [f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr]
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse_to_set(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for each, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, each.name, value)
