"""Classes of named fields: dataclasses whose methods are not compiled when their module is imported.

`dataclasses.dataclass` writes the source of up to seven methods for each class and compiles it, which takes half a
millisecond. A struct is a dataclass for whatever asks (`dataclasses.fields`, `replace`, `asdict`, `match`, pickle), but
its methods are the same functions for all classes, and its `__init__` is compiled when the first instance is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields, replace
from inspect import get_annotations
from operator import attrgetter
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

__all__ = ["struct"]


@dataclass(init=False, repr=False, eq=False)
class _Sample:
    """A dataclass, which would be slow to make without a docstring."""

    value: int


FIELD_KIND: Any = fields(_Sample)[0]._field_type  # type: ignore[attr-defined]
"""Marks what `dataclasses.fields` returns, which is neither a class variable nor only a parameter."""


class _Factory:
    def __repr__(self) -> str:
        return "<factory>"


FACTORY = _Factory()
"""The default of a parameter whose field has a `default_factory`."""


def _struct(cls: Any = None, /, **options: bool) -> Any:
    return _made(cls, options) if cls is not None else lambda cls: _made(cls, options)


if TYPE_CHECKING:
    from dataclasses import dataclass as struct
else:
    struct = _struct


def _made(cls: Any, options: Mapping[str, bool]) -> Any:
    params = {"frozen": False, "slots": False, "kw_only": False, "eq": True, "repr": True, **options}
    frozen, slots = params["frozen"], params["slots"]
    own = _own_fields(cls, kw_only=params["kw_only"])
    inherited: dict[str, Field[Any]] = {}
    for base in cls.__mro__[:0:-1]:
        inherited.update(base.__dict__.get("__dataclass_fields__", ()))
    every = {**inherited, **own}
    space: dict[str, Any] = {"__builtins__": __builtins__, "__name__": cls.__module__}
    init = _init(f"{cls.__qualname__}.__init__", every, space)
    members = {
        "__init__": init,
        "__dataclass_fields__": every,
        "__dataclass_params__": SimpleNamespace(init=True, order=False, unsafe_hash=False, **params),
        "__match_args__": tuple([name for name, each in every.items() if each.init and not each.kw_only]),
        "__replace__": replace,
        **_methods(every, **params),
    }
    members = {name: each for name, each in members.items() if cls.__dict__.get(name) is None}
    if slots:
        kept = {name: each for name, each in cls.__dict__.items() if name not in every}
        for name in ("__dict__", "__weakref__"):
            del kept[name]
        names = tuple([name for name in own if name not in inherited])
        made = type(cls)(cls.__name__, cls.__bases__, {**kept, **members, "__slots__": names})
        made.__qualname__ = cls.__qualname__
    else:
        made = cls
        for name, each in own.items():
            if each.default is not MISSING:
                setattr(cls, name, each.default)
            elif name in cls.__dict__:
                delattr(cls, name)
        for name, member in members.items():
            setattr(cls, name, member)
    space["_first"] = lambda values: _construct(made, init, values, frozen=frozen, slots=slots)
    return made


def _own_fields(cls: Any, *, kw_only: bool) -> dict[str, Field[Any]]:
    """Return the fields that a class itself declares, as `dataclasses.dataclass` would."""
    found: dict[str, Field[Any]] = {}
    for name, annotation in get_annotations(cls).items():
        if annotation.startswith("ClassVar"):
            continue
        default = cls.__dict__.get(name, MISSING)
        each: Any = default if isinstance(default, Field) else field(default=default)
        each.name, each.type, each._field_type = name, annotation, FIELD_KIND
        if each.kw_only is MISSING:
            each.kw_only = kw_only
        found[name] = each
    return found


# Construction


def _stub() -> None:
    _first(locals())  # type: ignore[name-defined]  # noqa: F821  # a global of each class


def _init(qualname: str, every: Mapping[str, Field[Any]], space: dict[str, Any]) -> FunctionType:
    """Return an `__init__` with the parameters of the fields, which compiles its real code when it is first called."""
    taken = [each for each in every.values() if each.init]
    positional, named = ([each for each in taken if each.kw_only is kind] for kind in (False, True))
    names = ("self", *[each.name for each in (*positional, *named)])
    code = _stub.__code__.replace(
        co_argcount=1 + len(positional), co_kwonlyargcount=len(named), co_nlocals=len(names), co_varnames=names
    )
    defaults = {each.name: _default(each) for each in taken if _default(each) is not MISSING}
    init = FunctionType(code, space, "__init__")
    init.__qualname__ = qualname
    init.__defaults__ = tuple([defaults[each.name] for each in positional if each.name in defaults]) or None
    init.__kwdefaults__ = {each.name: defaults[each.name] for each in named if each.name in defaults} or None
    init.__annotations__ = {**{each.name: each.type for each in (*positional, *named)}, "return": None}
    return init


def _default(each: Field[Any]) -> Any:
    return FACTORY if each.default_factory is not MISSING else each.default


def _construct(cls: Any, init: FunctionType, values: dict[str, Any], *, frozen: bool, slots: bool) -> None:
    """Compile the code of `__init__`, put it into the function, and make the first instance."""
    space: dict[str, Any] = init.__globals__
    space |= {"_FACTORY": FACTORY, "_set": object.__setattr__}
    lines = []
    for name, each in cls.__dataclass_fields__.items():
        value = name
        if each.default_factory is not MISSING:
            space[f"_make_{name}"] = each.default_factory
            value = f"_make_{name}() if {name} is _FACTORY else {name}" if each.init else f"_make_{name}()"
        elif not each.init:
            continue
        if not frozen:
            lines.append(f"    self.{name} = {value}")
        elif slots:
            space[f"_set_{name}"] = getattr(cls, name).__set__
            lines.append(f"    _set_{name}(self, {value})")
        else:
            lines.append(f"    _set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append("    self.__post_init__()")
    code = init.__code__
    count = code.co_argcount
    star = ["*"] if code.co_kwonlyargcount else []
    parameters = ", ".join([*code.co_varnames[:count], *star, *code.co_varnames[count:]])
    made: dict[str, Any] = {}
    exec(f"def __init__({parameters}):\n" + "\n".join(lines or ["    pass"]), made)
    init.__code__ = made["__init__"].__code__
    init(**values)


# The methods that all structs share


def _methods(
    every: Mapping[str, Field[Any]], *, frozen: bool, slots: bool, eq: bool, **params: bool
) -> dict[str, Callable[..., Any] | None]:
    found: dict[str, Callable[..., Any] | None] = {}
    if params["repr"]:
        found["__repr__"] = _repr
    if eq:
        compared = _values_of([name for name, each in every.items() if each.compare])

        def equal(self: Any, other: Any) -> Any:
            return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

        found["__eq__"] = equal
        found["__hash__"] = None
    if eq and frozen:

        def hashed(self: Any) -> int:
            return hash(compared(self))

        found["__hash__"] = hashed
    if frozen:
        found |= {"__setattr__": _refuse_setting, "__delattr__": _refuse_deleting}
    if frozen and slots:
        found |= {"__getstate__": _getstate, "__setstate__": _setstate}
    return found


def _values_of(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return (lambda self: (getattr(self, names[0]),)) if names else (lambda self: ())


def _repr(self: Any) -> str:
    shown = [f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_setting(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deleting(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for each, value in zip(fields(self), state, strict=False):
        object.__setattr__(self, each.name, value)
