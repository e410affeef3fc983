"""Keys for shared stores: short text that is the same in every process, whatever its hash seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from enum import Enum
from hashlib import blake2b
from types import ModuleType
from typing import Any

from opero.cache.keys import Hashed, Identity, Token, freeze
from opero.errors import ConfigError, message_of
from opero.policies.types import dotted_name
from opero.runtime.functions import full_name


def digest(key: Hashable) -> str:
    """Return a key of `KeyMaker` as short text; equal keys, and only those, have equal digests.

    Raises:
        ConfigError: a part of the key has no meaning in other processes.
    """
    return blake2b(_encoded(key), digest_size=16).hexdigest()


def _encoded(value: Any) -> bytes:
    """Return an unambiguous encoding of a value, in which each part has its type and length."""
    kind: Any = type(value)
    if kind is str:
        return _part(b"s", value.encode("utf-8", "surrogatepass"))
    if kind is int or kind is bool or kind is float or kind is complex or value is None:
        return _part(kind.__name__.encode(), repr(value).encode())
    if kind is bytes:
        return _part(b"b", value)
    if kind is tuple:
        return _part(b"t", b"".join(map(_encoded, value)))
    if kind is frozenset:
        return _part(b"f", b"".join(sorted(map(_encoded, value))))
    if kind is Hashed:
        return _encoded(value.value)
    if isinstance(value, Enum):
        return _part(b"e", _encoded(kind) + value.name.encode())
    if isinstance(value, Token | Identity):
        raise ConfigError(
            "an instance without a value cannot be part of a key in a store shared between processes: define "
            "`__opero_key__` (a value, or a method that returns it) in its class, make it a frozen dataclass, or set "
            "cache_key"
        )
    if isinstance(value, type) or callable(value):
        return _part(b"n", _name(value).encode())
    if kind.__eq__ is object.__eq__:
        raise ConfigError(
            f"a value of type {kind.__name__} compares by identity, so it cannot be part of a key in a store shared "
            f"between processes: define `__opero_key__` (a value, or a method that returns it) in {kind.__name__}, or "
            "set cache_key"
        )
    from joblib import hash as content_hash

    try:
        return _part(b"o", _encoded(kind) + content_hash(value).encode())
    except Exception as error:
        raise ConfigError(
            f"a value of type {kind.__name__} cannot be part of a key in a store shared between processes "
            f"({message_of(error)}): define `__opero_key__` in {kind.__name__}, or set cache_key"
        ) from error


def _part(tag: bytes, content: bytes) -> bytes:
    return b"%s%d:%s" % (tag, len(content), content)


def _name(value: Any) -> str:
    try:
        return dotted_name(value)
    except ValueError:
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}"  # a local class has no better name
        # Without its repr, which the cause's text also contains: it may show a secret.
        shown = full_name(value) if callable(value) else f"a value of type {type(value).__name__}"
        raise ConfigError(
            f"{shown} cannot be imported by name, so it cannot be part of a key in a store shared between processes: "
            "define it at module level, or set cache_key"
        ) from None


def name_in_stores(function: Callable[..., Any]) -> str:
    """Return a function's name in a shared store: `module.qualname`, with a digest where that is not unique.

    The digest covers the code and closure of a local function or lambda, the instance of a bound method, the arguments
    of a `partial`, and any other callable object itself.

    Raises:
        ConfigError: a part of the digest has no meaning in other processes.
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
            parts.append(_encoded(freeze(cell.cell_contents)))
        except Exception:  # noqa: BLE001  # an empty cell, or a value that has no digest
            parts.append(b"?")
    return blake2b(b"".join(_part(b"p", part) for part in parts), digest_size=6).hexdigest()


def _constants(code: Any) -> tuple[Any, ...]:
    """Return the constants of a code object; nested code objects, whose repr has an address, become their constants."""
    return tuple(_constants(each) if hasattr(each, "co_consts") else each for each in code.co_consts)
