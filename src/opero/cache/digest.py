"""Keys for stores that several processes share: the same text in each of them, whatever their hash seeds."""

from __future__ import annotations

import functools
from enum import Enum
from hashlib import blake2b
from types import ModuleType
from typing import TYPE_CHECKING, Any

from opero.cache.keys import Identity, Token, freeze
from opero.errors import ConfigError
from opero.policies.types import dotted_name
from opero.runtime.functions import full_name

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["digest", "name_in_stores"]


def digest(key: Hashable) -> str:
    """A key, as `KeyMaker` makes it, as short text; equal just where the keys are.

    Raises:
        ConfigError: a part of it means something in this process alone.
    """
    return blake2b(_spelt(key), digest_size=16).hexdigest()


def _spelt(value: Any) -> bytes:
    """Bytes from which the value could be told: each part says its type and length."""
    kind: Any = type(value)
    if kind is str:
        return _part(b"s", value.encode("utf-8", "surrogatepass"))
    if kind is int or kind is bool or kind is float or kind is complex or value is None:
        return _part(kind.__name__.encode(), repr(value).encode())
    if kind is bytes:
        return _part(b"b", value)
    if kind is tuple:
        return _part(b"t", b"".join(map(_spelt, value)))
    if kind is frozenset:
        return _part(b"f", b"".join(sorted(map(_spelt, value))))
    if isinstance(value, Enum):
        return _part(b"e", _spelt(kind) + value.name.encode())
    if isinstance(value, Token | Identity):
        raise ConfigError(
            "an instance without a key of its own cannot be told from others in a store shared between processes: give "
            "its class `__opero_key__` (a value, or a method that returns one), make it a frozen dataclass, or set "
            "cache_key"
        )
    if isinstance(value, type) or callable(value):
        return _part(b"n", _name(value).encode())
    if kind.__eq__ is object.__eq__:
        raise ConfigError(
            f"{value!r:.80} is equal to nothing but itself, so it cannot be part of a key in a store shared between "
            f"processes: give {kind.__name__} an `__opero_key__` (a value, or a method that returns it), or set "
            f"cache_key"
        )
    from joblib import hash as content_hash

    try:
        return _part(b"o", _spelt(kind) + content_hash(value).encode())
    except Exception as error:
        raise ConfigError(
            f"{value!r:.80} cannot be part of a key in a store shared between processes ({error}): give "
            f"{kind.__name__} "
            "an `__opero_key__`, or set cache_key"
        ) from error


def _part(tag: bytes, content: bytes) -> bytes:
    return b"%s%d:%s" % (tag, len(content), content)


def _name(value: Any) -> str:
    try:
        return dotted_name(value)
    except ValueError:
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}"  # a local class: as good a name as there is
        # Neither its repr is shown, nor the cause's text, which has it: it may show a secret.
        told = full_name(value) if callable(value) else f"a value of type {type(value).__name__}"
        raise ConfigError(
            f"{told} has no name that another process would know, so it cannot be part of a key in a store shared "
            "between processes: define it at module level, or set cache_key"
        ) from None


def name_in_stores(function: Callable[..., Any]) -> str:
    """What stands for a function in a store shared between processes: `module.qualname`, and what else tells it apart.

    For a local function or a lambda that is its code and the values that it closes over; for a bound method its
    instance; for a `partial` its arguments; for another callable object the object itself.

    Raises:
        ConfigError: what tells it apart means something in this process alone.
    """
    if isinstance(function, functools.partial):
        return f"{name_in_stores(function.func)}-{digest(freeze((function.args, function.keywords)))[:12]}"
    own: str | None = getattr(function, "__qualname__", None)
    if own is None:
        return f"{type(function).__module__}.{type(function).__qualname__}-{digest(freeze(function))[:12]}"
    name = full_name(function)
    instance = getattr(function, "__self__", None)
    if instance is not None and not isinstance(instance, type | ModuleType):
        name = f"{name}-{digest(freeze(instance))[:12]}"
    code: Any = getattr(function, "__code__", None)
    if code is not None and ("<locals>" in own or "<lambda>" in own):
        name = f"{name}-{_fingerprint(function, code)}"
    return name


def _fingerprint(function: Callable[..., Any], code: Any) -> str:
    parts: list[bytes] = [code.co_code, repr(_constants(code)).encode(), repr(code.co_names).encode()]
    for cell in getattr(function, "__closure__", None) or ():
        try:
            parts.append(_spelt(freeze(cell.cell_contents)))
        except Exception:  # noqa: BLE001  # an empty cell, or something that only its type can stand for
            parts.append(b"?")
    return blake2b(b"".join(_part(b"p", part) for part in parts), digest_size=6).hexdigest()


def _constants(code: Any) -> tuple[Any, ...]:
    """The constants of a function's code, and of the code within it; never an address."""
    return tuple(_constants(each) if hasattr(each, "co_consts") else each for each in code.co_consts)
