"""What `functions:` says: which entries hold for a function, and which of them comes over which."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING

from opero.config.document import is_glob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from opero.config.sources import Layer, Section

__all__ = ["FunctionEntries"]


def exactness(pattern: str) -> tuple[bool, int, int]:
    """How exactly a pattern names a function: a whole name before any glob; of globs the one with more characters that
    stand for themselves, then the one with fewer wildcards."""
    wildcards = re.findall(r"\[[^]]*\]|[*?]", pattern)
    return not is_glob(pattern), len(pattern) - sum(map(len, wildcards)), -len(wildcards)


class FunctionEntries:
    """The entries of `functions:` over all layers.

    Where several hold for a function, each lies over the less exact ones, key by key; of equally exact ones, over those
    that were written before it. What all layers say under one name is one entry: the highest layer's word is its last.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        names = dict.fromkeys(name for layer in layers for name in layer.functions)
        self.sections: dict[str, list[Section]] = {
            name: [layer.functions[name] for layer in layers if name in layer.functions]
            for name in sorted(names, key=exactness)
        }
        """Name or glob → what each layer says, the lowest first; the least exact name comes first."""
        self._globs = {name: re.compile(translate(name)) for name in names if is_glob(name)}

    def __bool__(self) -> bool:
        return bool(self.sections)

    def matching(self, function: str) -> list[str]:
        """The entries that hold for a function, "module:qualname", the least exact first."""
        return [
            name
            for name in self.sections
            if (name == function if name not in self._globs else self._globs[name].match(function) is not None)
        ]

    def unmatched(self, functions: Iterable[str]) -> list[str]:
        """The entries that hold for none of these functions."""
        seen = {name for function in functions for name in self.matching(function)}
        return [name for name in self.sections if name not in seen]
