"""Profiles from YAML files and environment variables, every value with its place."""

from opero.config.loader import Configuration, load
from opero.config.sources import Leaf, Source

__all__ = ["Configuration", "Leaf", "Source", "load"]
