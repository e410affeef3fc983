"""Policies by name, and the functions bound to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opero.registry.default import get_default_registry as get_default_registry
    from opero.registry.default import set_default_registry as set_default_registry
    from opero.registry.registry import Registry as Registry

_HOME = {"Registry": "registry", "get_default_registry": "default", "set_default_registry": "default"}

__all__ = ["Registry", "get_default_registry", "set_default_registry"]


def __getattr__(name: str) -> Any:
    """Load a name when it is first used, as decorating a function needs no registry."""
    if name not in _HOME:
        raise AttributeError(f"module 'opero.registry' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"opero.registry.{_HOME[name]}"), name)
