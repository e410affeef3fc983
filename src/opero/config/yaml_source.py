"""Parses a YAML file into marked data: every key and value has its file, line and column.

It is built in one pass over the parser's events; composing nodes first, as PyYAML does, would take twice as long.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from opero.config.fields import hidden_keys
from opero.config.mapping import shown
from opero.config.report import SECRET_WORD
from opero.config.sources import BROKEN, Marked, Source, position, source_of
from opero.config.unreadable import MAX_DEPTH, UnreadableError, explain, text_of
from opero.dataclass import dataclass
from opero.errors import readable
from opero.patterns import pattern
from opero.policies.quantities import LONGEST_QUOTED, MOST_BITS, quoted
from opero.problems import MASK

if TYPE_CHECKING:
    from pathlib import Path

    from opero.config.report import Report

# The C parser is 8 times faster, and parsing is most of loading.
SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_ALIASED = 100_000
"""The maximum number of values that aliases add to a file; typical files have some dozens."""

STR, MAP, SEQ = (f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq"))
OTHERS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "binary", "timestamp")}
"""Tags of scalars. PyYAML would construct an empty list for a scalar with the tag of a list."""
NUMBERS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float")}


_COMMENTS = r"(?:[ \t]*+(?:#[^\r\n]*+)?(?:[\r\n]++|\Z))*+"
_ONLY_COMMENTS = pattern(rf"\ufeff?{_COMMENTS}(?:---{_COMMENTS})?+")


def read_yaml(path: Path, name: str, report: Report) -> Marked | None:
    """Return the data of a YAML file, or None if it cannot be parsed; problems are added to `report`.

    Args:
        path: the file.
        name: its name in messages.
        report: receives the problems, and the text, to show lines from it. An invalid value becomes `BROKEN`.
    """
    try:
        text = text_of(path)
        report.texts[name] = text
        if "#" in text and _ONLY_COMMENTS.fullmatch(text):  # a file without any text may not have been written yet
            return Marked({}, 0, None, name)
        return _Reader(name, report).read(text)
    except UnreadableError as fatal:
        # What cannot be parsed may be a secret, or the rest of one.
        report.hide_line(name, fatal.line + 1)
        report.add(Source(name, fatal.line + 1, fatal.column + 1), str(fatal))
        return None


@dataclass(slots=True, eq=False)
class _Frame:
    """A mapping or list that has started and not ended.

    Attributes:
        event: the event of its start.
        items: its contents so far.
        values_before: the number of values before it.
        in_key: it is in the place of a key.
        wants_key: a key comes next, not a value.
        key: the key whose value comes next; None if that value is to be dropped.
        key_at: the position of that key.
        inherited: the mapping from `<<`.
        flaw: its contents are invalid.
    """

    event: Any
    items: dict[str, Marked] | list[Marked]
    values_before: int
    in_key: bool
    wants_key: bool
    key: str | None = None
    key_at: int | None = None
    inherited: dict[str, Marked] | None = None
    flaw: bool = False


MERGING = "<<"
"""The merge key, compared by identity, since a quoted "<<" is an ordinary key."""


class _Reader:
    """Converts the events of one file to marked data."""

    def __init__(self, name: str, report: Report) -> None:
        self._name = name
        self._report = report
        self._resolve: Callable[..., Any] = Resolver().resolve
        self._construct: Callable[[yaml.Node], Any] = SafeConstructor().construct_object
        self._plain: dict[str, Any] = {}
        """Plain text → its valid value; most texts are repeated."""
        self._anchors: dict[str, tuple[Marked, int] | None] = {}
        """Anchor → its data and number of values; None while it is open."""
        self._values = 0
        self._aliased = 0
        self._frames: list[_Frame] = []

    def read(self, text: str) -> Marked:
        try:
            loader = SAFE_LOADER(text)
            try:
                return self._document(loader.get_event)
            finally:
                loader.dispose()
        except yaml.YAMLError as error:
            explain(error, text)

    def _document(self, get_event: Any) -> Marked:
        frames, plain, name = self._frames, self._plain, self._name
        frame: _Frame | None = None
        document: Marked | None = None
        while True:
            event = get_event()
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._values += 1
                value = plain.get(event.value, BROKEN) if event.implicit[0] else BROKEN
                if frame is not None and frame.wants_key:
                    if type(value) is str and value not in frame.items and not event.anchor:
                        frame.key, frame.key_at, frame.wants_key = value, position(event), False
                    else:
                        self._take_key(frame, event, self._key_value(event))
                    continue
                if value is BROKEN:
                    value = self._scalar(event)
                marked = Marked(value, position(event), frame and frame.key_at, name)
                if event.anchor:
                    self._check_anchor(event)
                    self._anchors[event.anchor] = marked, 1
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                frame = self._begin(event, {} if kind is yaml.MappingStartEvent else [])
                continue
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                ended = frames.pop()
                frame = frames[-1] if frames else None
                marked = self._end(ended, frame and frame.key_at)
                if ended.in_key and frame is not None:
                    self._report.hide(marked)
                    self._reject_key(frame, ended.event, "a key must be text, not a list or mapping")
                    continue
            elif kind is yaml.AliasEvent:
                marked = self._alias(event)
                if frame is not None and frame.wants_key:
                    self._take_key(frame, event, marked.value)
                    continue
                marked = marked.under(frame and frame.key_at)
            elif kind is yaml.DocumentStartEvent:
                if document is not None:
                    self._fatal(event, "starts a second document (`---`); use one document per file")
                continue
            elif kind is yaml.StreamEndEvent:
                if document is None:
                    raise UnreadableError("is empty; write `policies:` and the profiles below it, or remove the file")
                return document
            else:
                continue
            if frame is None:
                document = marked
            elif type(frame.items) is list:
                frame.items.append(marked)
            else:
                frame.wants_key = True
                if frame.key is None or frame.key is MERGING:
                    self._take_unkeyed(frame, marked)
                else:
                    frame.items[frame.key] = marked  # type: ignore[call-overload]

    # Collections

    def _begin(self, event: Any, items: dict[str, Marked] | list[Marked]) -> _Frame:
        self._values += 1
        if len(self._frames) >= MAX_DEPTH:
            self._fatal(event, f"is nested deeper than {MAX_DEPTH} levels")
        in_key = bool(self._frames) and self._frames[-1].wants_key
        frame = _Frame(event, items, self._values - 1, in_key, type(items) is dict)
        if event.anchor:
            self._check_anchor(event)
            self._anchors[event.anchor] = None
        if event.tag and event.tag not in (MAP if type(items) is dict else SEQ, "!"):
            self._report.add(
                self._source(event), f"the tag {self._quoted(_tag(event.tag))} is not allowed; use plain YAML"
            )
            frame.flaw = True
        self._frames.append(frame)
        return frame

    def _end(self, frame: _Frame, key: Any) -> Marked:
        value: Any = frame.items
        if frame.inherited is not None:
            value = {**frame.inherited, **value}
        marked = Marked(BROKEN if frame.flaw else value, position(frame.event), key, self._name)
        if frame.event.anchor:
            self._anchors[frame.event.anchor] = marked, self._values - frame.values_before
        return marked

    def _check_anchor(self, event: Any) -> None:
        if event.anchor in self._anchors:
            name = self._quoted(event.anchor)
            self._report.add(self._source(event), f"duplicate anchor &{name}; rename one of them")

    def _alias(self, event: Any) -> Marked:
        if event.anchor not in self._anchors:
            anchor = self._quoted(event.anchor)
            self._fatal(
                event,
                f"is not valid YAML: found undefined alias {anchor!r}; define the anchor (&{anchor}) above it, "
                "or quote text that starts with *",
            )
        found = self._anchors[event.anchor]
        if found is None:
            self._report.add(self._source(event), "contains itself through an alias; write the value out")
            return Marked(BROKEN, position(event), None, self._name)
        marked, size = found
        self._values += size
        self._aliased += size
        if self._aliased > MAX_ALIASED:  # aliases are expanded when the data is used
            self._fatal(event, f"aliases add more than {MAX_ALIASED} values to the file; use fewer of them")
        return marked

    def _take_unkeyed(self, frame: _Frame, marked: Marked) -> None:
        """Handle a value with an invalid key, or the value of `<<: *anchor` or `<<: [*first, *second]`."""
        if frame.key is None:
            self._report.hide(marked)
            return
        inherited: dict[str, Marked] = {}
        for each in reversed(marked.value) if isinstance(marked.value, list) else [marked]:  # the first has precedence
            if isinstance(each.value, dict):
                inherited.update(each.value)
            elif each.value is not BROKEN:
                self._report.add(each.source, "`<<` must be a mapping or a list of mappings")
                self._report.hide(each)
        frame.inherited = {**inherited, **(frame.inherited or {})}

    # Keys

    def _take_key(self, frame: _Frame, event: Any, value: Any) -> None:
        frame.wants_key = False
        frame.key_at = position(event)
        frame.key = None
        if event.anchor and type(event) is yaml.ScalarEvent:
            self._check_anchor(event)
            self._anchors[event.anchor] = Marked(value, frame.key_at, None, self._name), 1
        if value is MERGING and frame.inherited is None:
            frame.inherited, frame.key = {}, MERGING
        elif type(value) is str:
            first = frame.items.get(value)  # type: ignore[union-attr]
            if first is not None or value is MERGING:
                other = "" if first is None else f" (first at line {first.place.line})"
                self._report.add(self._source(event), f"duplicate key {quoted(value)}{other}; keep one of them")
            else:
                frame.key = value
        elif value is BROKEN:
            self._report.hide(Marked(BROKEN, frame.key_at, None, self._name))
        else:
            text = getattr(event, "value", f"*{event.anchor}")
            advice = f'; quote it: "{text}"' if isinstance(event, yaml.ScalarEvent) else ""
            reading = f"YAML 1.1 reads {text} as {_read_as(value)}"
            self._report.add(self._source(event), f"a key must be text, but {reading}{advice}")

    def _key_value(self, event: Any) -> Any:
        if event.implicit[0]:
            if event.value == MERGING:
                return MERGING
            if event.value == "on":  # a field's name, which YAML 1.1 reads as true; no key is true
                return event.value
            value = self._plain.get(event.value, BROKEN)
            if value is not BROKEN:
                return value
        return self._scalar(event)

    def _reject_key(self, frame: _Frame, event: Any, text: str) -> None:
        frame.wants_key = False
        frame.key = None
        self._report.add(self._source(event), text)

    # Scalars

    def _scalar(self, event: Any) -> Any:
        """Return the value of a scalar, or BROKEN; valid plain scalars are memoized."""
        text, tag = event.value, event.tag
        is_plain = bool(event.implicit[0]) and not tag
        if tag is None or tag == "!":
            tag = self._resolve(yaml.ScalarNode, text, (True, False)) if is_plain else STR
        if is_plain and tag in NUMBERS and ":" in text:
            return self._broken(
                event,
                f"YAML 1.1 reads {self._quoted(text)} as a base-60 number; quote it, or use units",
            )
        if is_plain and tag in NUMBERS and re.fullmatch(r"[-+]?0[0-7_]+", text):
            return self._broken(
                event,
                f"YAML 1.1 reads {self._quoted(text)} as an octal number; quote it, or remove the leading 0",
            )
        if tag == STR:
            value: Any = text
        elif tag not in OTHERS:
            return self._broken(event, f"the tag {self._quoted(_tag(tag))} is not allowed; use plain YAML")
        else:
            try:
                value = self._construct(yaml.ScalarNode(tag, text, event.start_mark, event.end_mark))
            except Exception:  # noqa: BLE001  # PyYAML's constructors raise KeyError, AttributeError, and others
                return self._broken(event, f"{self._quoted(quoted(text))} is not a valid {_tag(tag)}")
        if type(value) is int and value.bit_length() > MOST_BITS:
            return self._broken(event, "is a number of more than 3,900 digits; quote it, or use a smaller one")
        if is_plain:
            self._plain[text] = value
        return value

    def _is_secret(self) -> bool:
        """Return whether the current value belongs to a key whose value must not be shown."""
        # The first two keys are a group, and the name of a profile or function.
        keys = [frame.key for frame in self._frames if isinstance(frame.key, str)][2:]
        return any(key in hidden_keys() or SECRET_WORD.search(key) for key in keys)

    def _quoted(self, text: str) -> str:
        """Return a part of the file as messages may show it."""
        return MASK if self._is_secret() else readable(text, LONGEST_QUOTED)

    def _broken(self, event: Any, text: str) -> Any:
        self._report.add(self._source(event), text)
        return BROKEN

    def _source(self, event: Any) -> Source:
        return source_of(position(event), self._name)

    def _fatal(self, event: Any, text: str) -> NoReturn:
        raise UnreadableError(text, event.start_mark.line, event.start_mark.column)


def _tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _read_as(value: object) -> str:
    if value is None or isinstance(value, bool | dict | list):
        return shown(value)
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
