"""Configuration: profiles from YAML files and environment variables, with the source of every value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opero.config.configuration import Configuration as Configuration
    from opero.config.settings import load as load
    from opero.config.sources import Leaf as Leaf
    from opero.config.sources import Source as Source

_HOME = {"Configuration": "configuration", "load": "settings", "Leaf": "sources", "Source": "sources"}

__all__ = ["Configuration", "Leaf", "Source", "load"]


def __getattr__(name: str) -> Any:
    """Import a name on first use: checking whether there is a configuration needs no YAML or pydantic-settings."""
    if name not in _HOME:
        raise AttributeError(f"module 'opero.config' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"opero.config.{_HOME[name]}"), name)
