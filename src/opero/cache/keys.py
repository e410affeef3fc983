"""The key of a call: its arguments, normalised to the function's signature, so that just equal calls share it."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["KeyMaker", "freeze"]


def freeze(value: Any) -> Hashable:
    """A hashable stand-in, equal only for values that are equal and of the same type: 1, 1.0 and True differ."""
    kind = type(value)
    if kind is str or value is None:
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple):
        return kind, tuple(freeze(each) for each in value)
    if isinstance(value, OrderedDict):
        return kind, tuple((freeze(key), freeze(each)) for key, each in value.items())
    if isinstance(value, Mapping):
        return kind, frozenset((freeze(key), freeze(each)) for key, each in value.items())
    if isinstance(value, Set):
        return kind, frozenset(freeze(each) for each in value)
    try:
        hash(value)
    except TypeError:
        # Arrays and other unhashable values go by their content.
        from joblib import hash as content_hash

        return kind, content_hash(value)
    return kind, value


class _Identity:
    """Stands for an instance that has no value of its own and cannot be referred to weakly."""

    __slots__ = ("instance",)

    def __init__(self, instance: object) -> None:
        self.instance = instance

    def __hash__(self) -> int:
        return id(self.instance)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.instance is other.instance


def _is_value(kind: Any) -> bool:
    """Whether instances of a class are equal by what they hold, and hashable."""
    return kind.__eq__ is not object.__eq__ and kind.__hash__ is not None


class KeyMaker:
    """Makes the keys of one function's calls.

    Args:
        function: the function whose signature the arguments are normalised to.
        key: the policy's own key function, which gets exactly the call's arguments.
        is_method: its first parameter is an instance. Instances share nothing unless they say how: by `__opero_key__`
            (a value, or a method that returns it), or by a value's own `__eq__` and `__hash__`.
    """

    def __init__(self, function: Callable[..., Any], key: Callable[..., Any] | None, *, is_method: bool) -> None:
        self.signature = inspect.signature(function)
        self.key = key
        self.is_method = is_method
        self._tokens: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._next_token = itertools.count()

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
        if self.key is not None:
            return "key", freeze(self.key(*args, **kwargs))
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = list(bound.arguments.values())
        if self.is_method and values:
            return self.instance_key(values[0]), *(freeze(value) for value in values[1:])
        return tuple(freeze(value) for value in values)

    def instance_key(self, instance: Any) -> Hashable:
        """What stands for the instance in its methods' keys; never its address, which another may have later."""
        kind = type(instance)
        if isinstance(instance, type):  # a class method's class, whose `__opero_key__` is for its instances
            return kind, instance
        own = getattr(instance, "__opero_key__", None)
        if own is not None:
            return kind, freeze(own() if callable(own) else own)
        if _is_value(kind):
            return freeze(instance)
        held = self._tokens.get(id(instance))
        if held is not None and held[0]() is instance:
            return kind, held[1]
        token = next(self._next_token)
        address = id(instance)
        try:
            reference = weakref.ref(instance, lambda gone: self._forget(address, gone))
        except TypeError:
            return kind, _Identity(instance)
        entry = reference, token
        held = self._tokens.setdefault(address, entry)  # another thread may have been here meanwhile
        if held[0]() is not instance:
            held = self._tokens[address] = entry
        return kind, held[1]

    def _forget(self, address: int, gone: weakref.ref[Any]) -> None:
        held = self._tokens.get(address)
        if held is not None and held[0] is gone:
            del self._tokens[address]
