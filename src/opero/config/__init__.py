"""Where policies come from: YAML files with line marks, environment variables, and how they are laid over each other."""

from opero.config.loader import Configuration, load
from opero.config.sources import Leaf, Source

__all__ = ["Configuration", "Leaf", "Source", "load"]
