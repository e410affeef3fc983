"""Reads a YAML file into marked data: every key and value knows its file, line and column."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from yaml.constructor import SafeConstructor

from opero.config.sources import BROKEN, Marked, Source

if TYPE_CHECKING:
    from pathlib import Path

    from opero.config.report import Report

__all__ = ["read_yaml"]

# The C parser is 8 times faster, and parsing is nine tenths of loading.
SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_VALUES = 100_000
"""Values that a file may come to once its aliases are written out. A real one has some hundreds."""
MAX_DEPTH = 50
"""How deep a file may nest. The format itself needs six levels."""
SMALL = 10_000
"""Characters that cannot nest deep enough to overflow the C parser's stack."""

MAP, SEQ, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge"))
NUMBERS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float")}
CURES = {
    "mapping values are not allowed": "; indent it like its neighbours, or quote text that holds ': '",
    "cannot start any token": "; quote the text",
    "found unexpected end of stream": "; close the quote",
    "undefined alias": "; define the anchor (&name) above it, or quote text that begins with *",
}


class _UnreadableError(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, text: str, line: int = 0, column: int = 0) -> None:
        super().__init__(text)
        self.line = line
        self.column = column


def read_yaml(path: Path, name: str, report: Report) -> Marked | None:
    """The data of a YAML file, or None where it cannot be read; what is wrong goes into `report`.

    Args:
        path: the file.
        name: how messages call it.
        report: takes what is wrong. A flaw inside the data leaves `BROKEN` in its place.
    """
    try:
        return _Reader(name, report).read(_text(path))
    except _UnreadableError as fatal:
        report.add(Source(name, fatal.line + 1, fatal.column + 1), str(fatal))
        return None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _UnreadableError(f"cannot be read: {error.strerror or error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", "replace")
        raise _UnreadableError("is not UTF-8; save it as UTF-8", *_position(before, len(before))) from error


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column, from 0, of a character."""
    line_start = text.rfind("\n", 0, index) + 1
    return text.count("\n", 0, index), index - line_start


class _Reader:
    """Turns one file's nodes into marked data."""

    def __init__(self, name: str, report: Report) -> None:
        self._name = name
        self._report = report
        self._scalars = SafeConstructor()
        self._values = 0
        self._open: list[int] = []

    def read(self, text: str) -> Marked:
        try:
            if len(text) > SMALL:
                self._check_depth(text)
            loader = SAFE_LOADER(text)
            try:
                node = loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.YAMLError as error:
            self._explain(error, text)
        except RecursionError:
            raise _UnreadableError(f"nests deeper than {MAX_DEPTH} levels") from None
        if node is None:
            raise _UnreadableError("is empty; write `policies:` and the profiles below it, or remove the file")
        return self._read(node)

    def _check_depth(self, text: str) -> None:
        depth = 0
        for event in yaml.parse(text, Loader=SAFE_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                self._fatal(event, f"nests deeper than {MAX_DEPTH} levels")

    def _explain(self, error: yaml.YAMLError, text: str) -> NoReturn:
        if isinstance(error, yaml.reader.ReaderError):
            before = text[: text.index(chr(error.character))] if isinstance(error.character, int) else ""
            place = _position(before, len(before))
            raise _UnreadableError(
                f"holds a character that YAML does not allow ({error.character:#04x}); remove it", *place
            ) from error
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        lines = text.splitlines()
        written = lines[line] if line < len(lines) else ""
        if "\t" in written[: len(written) - len(written.lstrip())]:
            raise _UnreadableError("a tab indents this line; YAML indents with spaces alone", line, column) from error
        if "another document" in problem:
            raise _UnreadableError("begins a second document (`---`); keep one a file", line, column) from error
        context = getattr(error, "context", None)
        cure = next((cure for part, cure in CURES.items() if part in problem), "")
        raise _UnreadableError(
            f"is not YAML: {problem}{f' {context}' if context else ''}{cure}", line, column
        ) from error

    def _source(self, node: Any) -> Source:
        return Source(self._name, node.start_mark.line + 1, node.start_mark.column + 1)

    def _fatal(self, node: Any, text: str) -> NoReturn:
        raise _UnreadableError(text, node.start_mark.line, node.start_mark.column)

    def _broken(self, node: yaml.Node, text: str, key: Source | None = None) -> Marked:
        self._report.add(self._source(node), text)
        return Marked(BROKEN, self._source(node), key)

    def _read(self, node: yaml.Node, key: Source | None = None) -> Marked:
        # Aliases are written out here, so what they may come to is bounded here, too.
        self._values += 1
        if self._values > MAX_VALUES:
            self._fatal(node, f"comes to more than {MAX_VALUES} values with its aliases written out; use fewer")
        if id(node) in self._open:
            return self._broken(node, "contains itself by an alias; write the value out", key)
        if len(self._open) >= MAX_DEPTH:
            self._fatal(node, f"nests deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            return self._read_scalar(node, key)
        if node.tag not in (MAP, SEQ):
            return self._broken(node, f"the tag {_tag(node)} is not allowed; write plain YAML", key)
        self._open.append(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Marked(self._read_mapping(node), self._source(node), key)
            return Marked([self._read(each) for each in node.value], self._source(node), key)
        finally:
            self._open.pop()

    def _read_scalar(self, node: yaml.ScalarNode, key: Source | None) -> Marked:
        plain = not node.style and node.tag in NUMBERS  # the C parser writes no style as ""
        if plain and ":" in node.value:
            return self._broken(
                node,
                f"YAML 1.1 reads {node.value} as a number to the base 60; quote it, or write it with units",
                key,
            )
        if plain and re.fullmatch(r"[-+]?0[0-7_]+", node.value):
            return self._broken(
                node, f"YAML 1.1 reads {node.value} as an octal number; write it without the leading 0", key
            )
        try:
            value = self._scalars.construct_object(node)
        except yaml.YAMLError:
            return self._broken(node, f"the tag {_tag(node)} is not allowed; write plain YAML", key)
        except ValueError as error:
            return self._broken(node, f"{node.value!r} cannot be read as {_tag(node)}: {error}", key)
        return Marked(value, self._source(node), key)

    def _read_mapping(self, node: yaml.MappingNode) -> dict[str, Marked]:
        inherited: dict[str, Marked] = {}
        own: dict[str, Marked] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE and "<<" not in own:
                inherited = self._read_merged(value_node)
                own["<<"] = Marked(None, self._source(key_node), self._source(key_node))
                continue
            name = self._read_key(key_node)
            if name is None:
                continue
            key = self._source(key_node)
            if name in own:
                first = own[name].place.line
                self._report.add(key, f"the key {name!r} stands here and in line {first}; keep one of them")
                continue
            own[name] = self._read(value_node, key)
        if any(key_node.tag == MERGE for key_node, _ in node.value):
            own.pop("<<", None)
        return {**inherited, **own}

    def _read_key(self, node: yaml.Node) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._report.add(self._source(node), "a key must be text, not a list or mapping")
            return None
        if node.tag == MERGE:
            return "<<"
        value = self._read_scalar(node, None).value
        if isinstance(value, str):
            return value
        if value is not BROKEN:
            said = f"YAML 1.1 reads {node.value} as {_read_as(value)}"
            self._report.add(self._source(node), f'a key must be text, but {said}; quote it: "{node.value}"')
        return None

    def _read_merged(self, node: yaml.Node) -> dict[str, Marked]:
        """What `<<: *anchor` or `<<: [*first, *second]` brings in; the first of several wins."""
        merged: dict[str, Marked] = {}
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(each, yaml.MappingNode):
                self._report.add(self._source(each), "`<<` takes a mapping, or a list of them")
                continue
            value = self._read(each).value
            if value is not BROKEN:
                merged = {**value, **merged}
        return merged


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


def _read_as(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
