"""Cache keys: a call's arguments, normalised to the function's signature, so that equal calls have equal keys."""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Set
from inspect import Parameter
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from opero.runtime.functions import signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Identity", "KeyMaker", "Token", "freeze", "is_plain"]

STARS: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
PLAIN = (str, int, float, bool, bytes, complex, type(None))


def freeze(value: Any) -> Hashable:
    """Return a hashable equivalent of a value; equal values of different types (1, 1.0, True) get different ones."""
    kind = type(value)
    if kind is str or kind is int or value is None:
        return value  # type: ignore[no-any-return]
    if kind is float:
        # As text, 0.0 and -0.0 differ, and NaN is equal to itself.
        return kind, value if value != 0 and value == value else str(value)
    if isinstance(value, list | tuple):
        return kind, tuple(freeze(each) for each in value)
    if isinstance(value, OrderedDict):
        return kind, tuple((freeze(key), freeze(each)) for key, each in value.items())
    if isinstance(value, Mapping):
        return kind, frozenset((freeze(key), freeze(each)) for key, each in value.items())
    if isinstance(value, Set):
        return kind, frozenset(freeze(each) for each in value)
    own = None if isinstance(value, type) else getattr(kind, "__opero_key__", None)
    if own is not None:
        return kind, freeze(value.__opero_key__() if callable(own) else value.__opero_key__)
    try:
        hash(value)
    except (TypeError, ValueError):  # ValueError: a writable memoryview
        # Arrays and other unhashable values are identified by a hash of their content.
        from joblib import hash as content_hash

        return kind, content_hash(value.tobytes() if kind is memoryview else value)
    return kind, value


def is_plain(key: Any) -> bool:
    """Return whether comparing a key runs no Python code, so that looking it up in a dictionary is atomic."""
    kind = type(key)
    if kind is tuple or kind is frozenset:
        return all(map(is_plain, key))
    return kind in PLAIN or kind is Token or (isinstance(key, type) and _hash_of(kind) is type.__hash__)


def _hash_of(kind: Any) -> Any:
    return kind.__hash__


class Token(int):
    """Identifies, within this process, an instance that has no value of its own."""

    __slots__ = ()


class Identity:
    """Identifies an instance that has no value of its own and does not support weak references."""

    __slots__ = ("instance",)

    def __init__(self, instance: object) -> None:
        self.instance = instance

    def __hash__(self) -> int:
        return id(self.instance)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.instance is other.instance


def _is_value(kind: Any) -> bool:
    """Return whether instances of a class compare by value and are hashable."""
    return kind.__eq__ is not object.__eq__ and kind.__hash__ is not None


def _needs_binding(name: str) -> bool:
    """Return whether a parameter's name cannot appear in generated code, such as one from a custom `__signature__`."""
    return not name.isidentifier() or iskeyword(name) or name.startswith("_opero_")


class KeyMaker:
    """Makes the keys of one function's calls.

    Args:
        function: the function whose signature the arguments are normalised to.
        key: the policy's own key function, which is called with the call's arguments; None for the default key.
        is_method: whether the first parameter is an instance. Instances have separate keys unless they define
            `__opero_key__` (a value, or a method that returns it), or `__eq__` and `__hash__`.

    Attributes:
        of: makes the key of a call: `of(*args, **kwargs)`.
        parameters: the function's parameters by name; empty if its signature cannot be read.
    """

    def __init__(self, function: Callable[..., Any], key: Callable[..., Any] | None, *, is_method: bool) -> None:
        self.signature = signature_of(function)
        self.parameters: Mapping[str, Parameter] = self.signature.parameters if self.signature is not None else {}
        self.key = key
        self.is_method = is_method
        self.name: str = getattr(function, "__qualname__", "function")
        self._tokens: dict[int, tuple[weakref.ref[Any], Token]] = {}
        self._next_token = itertools.count()
        self.of: Callable[..., Hashable] = self.compiled()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        return self.of(*args, **kwargs) if kwargs else self.of(*args)

    def compiled(self, before: str = "", after: str = "return {key}", /, **names: Any) -> Callable[..., Any]:
        """Generate a function with the user's parameters that makes the key.

        Such a function takes a twentieth of the time of `inspect.Signature.bind`.

        Args:
            before: source lines before the key is made.
            after: source lines that use the key; `{key}` is replaced with the expression that makes it.
            names: the global names that these lines use.
        """
        parameters, key = self._written(names)
        lines = [line for part in (before, after) for line in part.format(key=key).splitlines() if line]
        body = "\n".join(f"    {line}" for line in lines)
        # Prefixed, so that no name collides with a parameter of the user's.
        space = {"_opero_type": type, "_opero_int": int, "_opero_str": str, "_opero_freeze": freeze, **names}
        exec(f"def _opero_made({parameters}):\n{body}\n", space)
        made: Callable[..., Any] = space["_opero_made"]
        made.__qualname__ = made.__name__ = self.name  # for the TypeError of a call with wrong arguments
        return made

    def _written(self, names: dict[str, Any]) -> tuple[str, str]:
        """Return the source of the parameters and of the key expression, and add the globals they use to `names`."""
        if self.key is not None or self.signature is None or any(map(_needs_binding, self.parameters)):
            whole = self._by_signature if self.signature is not None else self._by_position
            names["_opero_whole"] = self._by_function if self.key is not None else whole
            return "*_opero_args, **_opero_kwargs", "_opero_whole(_opero_args, _opero_kwargs)"
        written: list[str] = []
        parts: list[str] = []
        before: Any = None
        for index, parameter in enumerate(self.signature.parameters.values()):
            name, kind = parameter.name, parameter.kind
            if before is Parameter.POSITIONAL_ONLY and kind is not before:
                written.append("/")
            if kind is Parameter.KEYWORD_ONLY and before not in (Parameter.KEYWORD_ONLY, Parameter.VAR_POSITIONAL):
                written.append("*")
            before = kind
            star = STARS.get(kind, "")
            default = ""
            if parameter.default is not Parameter.empty:
                names[f"_opero_default{index}"] = parameter.default
                default = f"=_opero_default{index}"
            written.append(f"{star}{name}{default}")
            if index == 0 and self.is_method and not star:
                names["_opero_instance"] = self.instance_key
                parts.append(f"_opero_instance({name})")
            elif kind is Parameter.VAR_POSITIONAL:
                names |= {"_opero_tuple": tuple, "_opero_map": map}
                parts.append(f"(_opero_tuple(_opero_map(_opero_freeze, {name})) if {name} else ())")
            elif kind is Parameter.VAR_KEYWORD:
                parts.append(f"(_opero_freeze({name}) if {name} else ())")
            else:
                first, second = ("str", "int") if parameter.annotation in (str, "str") else ("int", "str")
                parts.append(
                    f"({name} if _opero_type({name}) is _opero_{first} or _opero_type({name}) is _opero_{second} "
                    f"else _opero_freeze({name}))"
                )
        if before is Parameter.POSITIONAL_ONLY:
            written.append("/")
        return ", ".join(written), parts[0] if len(parts) == 1 else f"({', '.join(parts)})"

    def _by_function(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        assert self.key is not None
        return "key", freeze(self.key(*args, **kwargs))

    def _by_signature(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        return freeze(tuple(self.arguments(args, kwargs).values()))

    def _by_position(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        return freeze(args), freeze(kwargs)

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by parameter name, including defaults."""
        if self.signature is None:
            return dict(kwargs)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def instance_key(self, instance: Any) -> Hashable:
        """Return the part of a method's key that identifies the instance.

        It is never the address, as another instance may later have the same.
        """
        kind = type(instance)
        if isinstance(instance, type):  # a class method's class; its `__opero_key__` is meant for its instances
            return kind, instance
        own = getattr(instance, "__opero_key__", None)
        if own is not None:
            return kind, freeze(own() if callable(own) else own)
        if _is_value(kind):
            return freeze(instance)
        held = self._tokens.get(id(instance))
        if held is not None and held[0]() is instance:
            return kind, held[1]
        token = Token(next(self._next_token))
        address = id(instance)
        try:
            reference = weakref.ref(instance, lambda gone: self._forget(address, gone))
        except TypeError:
            return kind, Identity(instance)
        entry = reference, token
        held = self._tokens.setdefault(address, entry)  # another thread may have added one meanwhile
        if held[0]() is not instance:
            held = self._tokens[address] = entry
        return kind, held[1]

    def _forget(self, address: int, gone: weakref.ref[Any]) -> None:
        held = self._tokens.get(address)
        if held is not None and held[0] is gone:
            del self._tokens[address]
