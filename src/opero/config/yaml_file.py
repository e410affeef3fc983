"""Reading a policy file: the safe YAML loader's node graph, in which every value has its line and column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from opero.config.sources import Leaf, Source, place_of

if TYPE_CHECKING:
    from pathlib import Path

    from opero.config.sources import Problems

__all__ = ["Entry", "Section", "read_yaml"]

SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_NODES = 100_000
"""More than any file of policies has; aliases of aliases reach it soon."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's place, and what stands there: another section, or a value."""

    source: Source
    value: Section | Leaf


Section = dict[str, Entry]


def read_yaml(path: Path, problems: Problems) -> Section:
    """The mapping that a file holds; what is wrong with it is added to the problems."""
    place = place_of(path)
    top = Source(place, 1, 1)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.add(Source(place), f"cannot be read: {error}")
        return {}
    loader = SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            problems.add(top, "the file is empty; write `policies:` and the profiles below it, or delete the file")
            return {}
        if not isinstance(node, yaml.MappingNode):
            what = "a list" if isinstance(node, yaml.SequenceNode) else f"the value {node.value!r:.40}"
            problems.add(_source(place, node), f"the file holds {what}, not a mapping; it begins with `policies:`")
            return {}
        return _Reader(loader, place, problems).section(node)
    except yaml.MarkedYAMLError as error:
        problems.add(_mark(place, error.problem_mark or error.context_mark), _syntax(error, text))
        return {}
    except yaml.YAMLError as error:
        problems.add(top, f"is not YAML: {error}")
        return {}
    finally:
        loader.dispose()


class _Reader:
    def __init__(self, loader: Any, place: str, problems: Problems) -> None:
        self.loader = loader
        self.place = place
        self.problems = problems
        self.nodes = 0

    def section(self, node: yaml.MappingNode) -> Section:
        """A mapping, key by key."""
        self._check_duplicates(node)
        self.loader.flatten_mapping(node)  # merge keys: <<
        section: Section = {}
        for key_node, value_node in node.value:
            self.nodes += 1
            if self.nodes > MOST_NODES:
                raise yaml.MarkedYAMLError(problem="the file unfolds to too many values", problem_mark=key_node.start_mark)
            source = _source(self.place, key_node)
            key = self.loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                self.problems.add(source, f"the key {key_node.value!r} reads as {key!r} in YAML; put it in quotes")
                continue
            value = _source(self.place, value_node)
            if isinstance(value_node, yaml.MappingNode):
                section[key] = Entry(source, self.section(value_node))
            else:
                section[key] = Entry(source, Leaf(self._value(value_node), value))
        return section

    def _value(self, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and ":" in node.value:
            self.problems.add(
                _source(self.place, node),
                f"{node.value} reads as the number {self.loader.construct_object(node)} in YAML; put it in quotes",
            )
        return self.loader.construct_object(node, deep=True)

    def _check_duplicates(self, node: yaml.MappingNode) -> None:
        seen: dict[str, yaml.Node] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            if key_node.value in seen:
                first = seen[key_node.value].start_mark.line + 1
                self.problems.add(
                    _source(self.place, key_node),
                    f"the key {key_node.value!r} stands twice, first in line {first}; remove one",
                )
            seen.setdefault(key_node.value, key_node)


def _source(place: str, node: yaml.Node) -> Source:
    return _mark(place, node.start_mark)


def _mark(place: str, mark: Any) -> Source:
    return Source(place) if mark is None else Source(place, mark.line + 1, mark.column + 1)


def _syntax(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "\\t" in str(error.problem):
        return "a tab is no indentation in YAML; use spaces"
    if "single document" in str(error.context):
        return "the file holds more than one document; write one file for each environment"
    what = error.problem or error.context or "cannot be understood"
    return f"is not YAML: {what}{f' ({error.context})' if error.context and error.context != what else ''}"
