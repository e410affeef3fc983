"""Cache keys: a call's arguments, normalised to the function's signature, so that equal calls have equal keys."""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Set
from inspect import Parameter
from types import FunctionType
from typing import Any

from opero.errors import ConfigError
from opero.runtime.functions import full_name, is_async_function, signature_of
from opero.runtime.generated import ANY, Parameters, generate

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
        number = hash(value)
    except (TypeError, ValueError):  # ValueError: a writable memoryview
        # Arrays and other unhashable values are identified by a hash of their content.
        from joblib import hash as content_hash

        return kind, content_hash(value.tobytes() if kind is memoryview else value)
    return kind, Hashed(value, number) if type(kind.__hash__) is FunctionType else value


def is_plain(key: Any) -> bool:
    """Return whether comparing a key runs no Python code, so that looking it up in a dictionary is atomic."""
    kind = type(key)
    if kind is tuple or kind is frozenset:
        return all(map(is_plain, key))
    return kind in PLAIN or kind is Token or (isinstance(key, type) and _hash_of(kind) is type.__hash__)


def _hash_of(kind: Any) -> Any:
    return kind.__hash__


class Hashed:
    """A value whose class computes its hash in Python. It is asked once, however often the key is looked up."""

    __slots__ = ("number", "value")

    def __init__(self, value: Any, number: int) -> None:
        self.value = value
        self.number = number

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and self.number == other.number and bool(self.value == other.value)

    def __repr__(self) -> str:
        return repr(self.value)


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


KEY = """
def generated({parameters}):
    return {key}
"""
NAMESPACE = {"__name__": __name__, "freeze": freeze}


class KeyMaker:
    """Makes the keys of one function's calls.

    Args:
        function: the function whose signature the arguments are normalised to.
        key: the policy's own key function, which is called with the call's arguments; None for the default key.
        is_method: whether the first parameter is an instance. Instances have separate keys unless they define
            `__opero_key__` (a value, or a method that returns it), or `__eq__` and `__hash__`.

    Attributes:
        of: makes the key of a call: `of(*args, **kwargs)`; where `key` is async, only `awaited` does.
        is_async: whether `key` is async.
        parameters: the function's parameters by name; empty if its signature cannot be read.
    """

    def __init__(self, function: Callable[..., Any], key: Callable[..., Any] | None, *, is_method: bool) -> None:
        self.signature = signature_of(function)
        self.parameters: Mapping[str, Parameter] = self.signature.parameters if self.signature is not None else {}
        self.key = key
        self.is_async = is_async_function(key)
        self.is_method = is_method
        self.name: str = getattr(function, "__qualname__", "function")
        self._tokens: dict[int, tuple[weakref.ref[Any], Token]] = {}
        self._next_token = itertools.count()
        self.of: Callable[..., Hashable] = self.compiled()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        return self.of(*args, **kwargs) if kwargs else self.of(*args)

    def compiled(
        self, template: str = KEY, /, *, values: Mapping[str, Any] | None = None, **parts: str
    ) -> FunctionType:
        """Generate a function with the user's parameters that makes the key.

        Such a function takes a twentieth of the time of `inspect.Signature.bind`.

        Args:
            template: see `opero.runtime.generated.code`; `{key}` stands for the expression that makes the key.
            values: the values of the names in it that differ from function to function.
            parts: further parts of the template.
        """
        parameters, key, used = self._expression()
        made = generate(template, parameters, {**used, **(values or {})}, NAMESPACE, key=key, **parts)
        made.__qualname__ = made.__name__ = self.name  # for the TypeError of a call with wrong arguments
        return made

    def _expression(self) -> tuple[Parameters, str, dict[str, Any]]:
        """Return the parameters, the expression of the key, and the values that it uses."""
        if self.key is not None:
            return ANY, "whole({args}, {kwargs})", {"whole": self._by_function}
        if self.signature is None:
            return ANY, "whole({args}, {kwargs})", {"whole": self._by_position}
        parameters = Parameters.of_signature(self.parameters)
        used: dict[str, Any] = {}
        expressions: list[str] = []
        for index, parameter in enumerate(self.parameters.values()):
            kind, name = parameter.kind, f"{{{parameters.names.index(parameter.name)}}}"
            if kind is Parameter.VAR_POSITIONAL:
                expressions.append(f"(tuple(map(freeze, {name})) if {name} else ())")
            elif kind is Parameter.VAR_KEYWORD:
                expressions.append(f"(freeze({name}) if {name} else ())")
            elif index == 0 and self.is_method:
                used["instance"] = self.instance_key
                expressions.append(f"instance({name})")
            else:
                first, second = ("str", "int") if parameter.annotation in (str, "str") else ("int", "str")
                expressions.append(
                    f"({name} if type({name}) is {first} or type({name}) is {second} else freeze({name}))"
                )
        return parameters, expressions[0] if len(expressions) == 1 else f"({', '.join(expressions)})", used

    def _by_function(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        assert self.key is not None
        if self.is_async:
            raise ConfigError(
                f"{self.name}: the keys of its cache come from the async function {full_name(self.key)}, and "
                "only calls of the function await it; for cache_get, cache_set and cache_delete use a sync key function"
            )
        return "key", freeze(self.key(*args, **kwargs))

    async def awaited(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        """Return the key of a call by the policy's async key function."""
        assert self.key is not None
        return "key", freeze(await self.key(*args, **kwargs))

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
