"""Keys for shared stores: short text that is the same in every process, whatever its hash seed."""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from types import ModuleType
from typing import Any

from opero.cache.content import Content, Hashed, NoKeyError, content_of
from opero.cache.instances import Identity, Token
from opero.policies.types import dotted_name
from opero.runtime.functions import full_name


def digest(key: Hashable) -> str:
    """Return a key of `KeyMaker` as short text; equal keys, and only those, have equal digests.

    Raises:
        NoKeyError: a part of the key has no meaning in other processes.
    """
    return blake2b(_encoded(key), digest_size=16).hexdigest()


def _encoded(value: Any) -> bytes:
    """Return an unambiguous encoding of a value, in which each part has its type and length."""
    kind: Any = type(value)
    if kind is str or kind is Content:
        return part(b"s", value.encode("utf-8", "surrogatepass"))
    if kind is int or kind is bool or kind is float or value is None:
        return part(kind.__name__.encode(), repr(value).encode())
    if kind is bytes:
        return part(b"b", value)
    if kind is tuple:
        return part(b"t", b"".join(map(_encoded, value)))
    if kind is frozenset:
        return part(b"f", b"".join(sorted(map(_encoded, value))))
    if kind is Hashed:
        return _encoded(content_of(value.value))
    if kind is Token:
        return _by_name(value.instance())
    if kind is Identity:
        return _by_name(value.instance)
    if isinstance(value, type | ModuleType) or callable(value):
        return _by_name(value)
    return part(b"o", _encoded(content_of(value)))


def _by_name(value: Any) -> bytes:
    """Encode what has no value by its name, which other processes know it by."""
    if isinstance(value, ModuleType):
        return part(b"n", value.__name__.encode())
    kind: Any = type(value)
    if not isinstance(value, type) and not (callable(value) and hasattr(value, "__qualname__")):
        raise NoKeyError(
            f"a value of type {kind.__name__} compares by identity, so it cannot be part of a key in a store shared "
            f"between processes: define `__opero_key__` (a value, or a method that returns it) in {kind.__name__}, "
            "make it a frozen dataclass, or set cache_key"
        )
    return part(b"n", _name(value).encode())


def part(tag: bytes, content: bytes) -> bytes:
    """Return bytes with what tells where they end and what they are."""
    return b"%s%d:%s" % (tag, len(content), content)


def _name(value: Any) -> str:
    try:
        return dotted_name(value)
    except ValueError:
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}"  # a local class has no better name
        # Without its repr, which the cause's text also contains: it may show a secret.
        shown = full_name(value) if callable(value) else f"a value of type {type(value).__name__}"
        raise NoKeyError(
            f"{shown} cannot be imported by name, so it cannot be part of a key in a store shared between processes: "
            "define it at module level, or set cache_key"
        ) from None
