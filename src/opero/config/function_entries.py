"""The entries of `functions:`: which of them match a function, and their precedence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase, translate
from typing import TYPE_CHECKING

from opero.config.document import is_glob

if TYPE_CHECKING:
    from opero.config.sources import ConfigLayer, Section


def specificity(pattern: str) -> tuple[bool, int, int]:
    """Return the sort key of a pattern: globs before full names; globs by the number of literal characters, then by
    fewer wildcards."""
    head, bracket, tail = pattern.rpartition("]")  # a bracket that is never closed is a literal
    wildcards = [*re.findall(r"\[[^]]*\]|[*?]", head + bracket), *re.findall(r"[*?]", tail)]
    return not is_glob(pattern), len(pattern) - sum(map(len, wildcards)), -len(wildcards)


def has_match(entries: Iterable[str], function: str) -> bool:
    """Return whether one of these entries matches a function, "module:qualname"."""
    return any(fnmatchcase(function, each) if is_glob(each) else each == function for each in entries)


class FunctionEntries:
    """The entries of `functions:` over all layers.

    If several match a function, the more specific ones have precedence, and of equally specific ones the later. A name
    in several layers is one entry, in which higher layers have precedence.
    """

    def __init__(self, layers: Sequence[ConfigLayer]) -> None:
        names = dict.fromkeys(name for layer in layers for name in layer.functions)
        self.sections: dict[str, list[Section]] = {
            name: [layer.functions[name] for layer in layers if name in layer.functions]
            for name in sorted(names, key=specificity)
        }
        """Name or glob → its sections, lowest layer first; the least specific name comes first."""
        self._globs = {name: re.compile(translate(name)) for name in self.sections if is_glob(name)}

    def __bool__(self) -> bool:
        return bool(self.sections)

    def matching(self, function: str) -> list[str]:
        """Return the entries that match a function, "module:qualname", the least specific first."""
        found = [name for name, glob in self._globs.items() if glob.match(function) is not None]
        is_named = function in self.sections and function not in self._globs
        return [*found, function] if is_named else found  # names are more specific than globs

    def unmatched(self, functions: Iterable[str]) -> list[str]:
        """Return the entries that match none of these functions."""
        seen = {name for function in functions for name in self.matching(function)}
        return [name for name in self.sections if name not in seen]
