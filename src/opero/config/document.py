"""Reads marked data as configuration: which keys may stand where, and the short forms of the policies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.config.fields import is_hidden, suggest_key
from opero.config.report import HARMLESS, MASK
from opero.config.sources import BROKEN, Block, Layer, Marked, Section
from opero.errors import nearest
from opero.policies.base import BasePolicy
from opero.policies.merging import read
from opero.policies.names import DOTTED, NAME
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from opero.config.report import Report

__all__ = ["is_glob", "read_block", "read_document", "read_parent", "shown"]

KEYS = ("policies", "defaults", "functions", "import_from")
FIELDS = {kind: frozenset(model.model_fields) for kind, model in KINDS.items()}
HIDDEN = {kind: frozenset(field for field in fields if is_hidden(kind, field)) for kind, fields in FIELDS.items()}
FUNCTION = re.compile(rf"{DOTTED}:{NAME}(\.({NAME}|<locals>))*")
"""The exact name of a function: module:qualname."""
MODULE = re.compile(DOTTED)


def shown(value: Any) -> str:
    """A value as messages show it, in YAML's words rather than Python's."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def is_glob(name: str) -> bool:
    """Whether the name of a `functions:` entry stands for many functions."""
    return any(character in name for character in "*?[")


def read_document(document: Marked, name: str, report: Report) -> Layer:
    """What a whole file says.

    Args:
        document: the file's data: a mapping with `policies:` (name → profile), `defaults:` (laid under each),
            `functions:` (name or glob → what holds for these functions) and `import_from:` (modules).
        name: how messages call the file.
        report: takes what is wrong.
    """
    entries = _mapping(document, "the file", report, cure="start it with `policies:`")
    defaults: Section | None = None
    profiles: dict[str, Section] = {}
    functions: dict[str, Section] = {}
    import_from: Marked | None = None
    for key, entry in entries.items():
        if key not in KEYS:
            report.add(entry.place, f"unknown key {key!r}{nearest(key, KEYS)} (profiles belong under `policies:`)")
            report.hide_texts(entry)
        elif key == "import_from":
            import_from = _read_modules(entry, report)
        elif entry.value is None:
            continue
        elif key == "defaults":
            defaults = _read_section(entry, "defaults", report)
        elif key == "policies":
            cure = "write the name of each profile, with its policies below it"
            for each, body in _mapping(entry, "`policies:`", report, cure).items():
                if each:
                    profiles[each] = _read_section(body, f"policies.{each}", report, "extends")
                else:
                    report.add(body.place, "the name of a profile is empty")
        else:
            cure = 'write the name of each function, "module:function", with its policies below it'
            for each, body in _mapping(entry, "`functions:`", report, cure).items():
                if _check_function(each, body, report):
                    functions[each] = _read_section(body, f"functions.{each}", report, "policy")
    return Layer(name, defaults, profiles, functions, import_from)


def _mapping(marked: Marked, what: str, report: Report, cure: str) -> dict[str, Marked]:
    if isinstance(marked.value, dict):
        return marked.value
    if marked.value is not BROKEN:
        # Text may be a secret that slipped into the wrong place.
        it = "text" if isinstance(marked.value, str) else shown(marked.value)
        report.add(marked.source, f"{what} must be a mapping, not {it}; {cure}")
        report.hide(marked)
    return {}


def _check_function(name: str, body: Marked, report: Report) -> bool:
    if is_glob(name) or FUNCTION.fullmatch(name):
        return True
    module, _, function = name.rpartition(".")
    cure = f'; did you mean "{module}:{function}"?' if module and ":" not in name else ""
    report.add(body.place, f'{name!r} is not a function name: use "module:function", or a glob such as "app.*"{cure}')
    return False


def _read_modules(marked: Marked, report: Report) -> Marked | None:
    """`import_from`: a module, or a list of them."""
    if marked.value is BROKEN:
        return None
    if marked.value is None:  # allow all, as without it, or none?
        report.add(marked.place, "import_from is empty; list modules, use [] to allow none, or remove it")
        return None
    each = marked.value if isinstance(marked.value, list) else [marked]
    good = [one for one in each if isinstance(one.value, str) and MODULE.fullmatch(one.value)]
    for one in each:
        if one not in good and one.value is not BROKEN:
            report.add(
                one.source,
                f"import_from: {shown(one.value)} is not a module name; use a list, such as [app, requests]",
            )
    return Marked(good, marked.at, marked.key, marked.file)


def _read_section(marked: Marked, section: str, report: Report, parent_key: str | None = None) -> Section:
    """A profile, `defaults`, or a function's entry. One that is null says nothing of its own."""
    if marked.value is None:
        return Section(section, marked)
    entries = _mapping(marked, section, report, cure="write policies below it, such as `retry: {retries: 3}`")
    blocks: dict[str, Block] = {}
    parent: Marked | None = None
    flawed = not isinstance(marked.value, dict)
    for key, entry in entries.items():
        if key in KINDS:
            blocks[key] = read_block(key, entry, section, report)
        elif key == parent_key:
            parent = read_parent(entry, f"{section}.{key}", report)
            flawed = flawed or parent is None
        elif key == "extends" and section == "defaults":
            report.add(entry.place, "`defaults:` cannot extend a profile; remove this")
        else:
            # The value may hold a secret, whatever the key was meant to be.
            cure = suggest_key(key, value=entry.plain(), parent=parent_key)
            report.add(
                entry.place,
                f"{_unknown(key, entry, report)} in {section}{cure}",
                section,
                Block(marked, section, {}).into(entry),
            )
            report.hide_texts(entry)
    return Section(section, marked, blocks, parent, flawed=flawed)


def _unknown(key: str, entry: Marked, report: Report) -> str:
    """An unknown key as messages show it: "secret:hunter2", which lacks a space, is a key alone."""
    name, separator, rest = re.fullmatch(r"([^:=]*)([:=]*)(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]
    if not separator or HARMLESS.fullmatch(rest.strip()):
        return f"unknown key {key!r}"
    report.hide_key(entry)
    return f"unknown key {name + separator + MASK!r}"


def read_parent(marked: Marked, what: str, report: Report) -> Marked | None:
    """The name of the profile to start from; null: of none."""
    if marked.value is None or isinstance(marked.value, str):
        return marked
    if marked.value is not BROKEN:
        report.add(marked.source, f"{what} must be the name of one profile, not {shown(marked.value)}")
        report.hide(marked)
    return None


def read_block(kind: str, marked: Marked, section: str, report: Report) -> Block:
    """One policy in any of its forms: null, true, false, a bare value, a mapping of its fields, or, from code, a model.

    Args:
        kind: "retry", "cache", and so on.
        marked: what was written.
        section: "defaults", "policies.<name>" or "functions.<name>".
        report: takes unknown fields; values are judged later, when the layers are merged.
    """
    value = marked.value
    if value is BROKEN:
        return Block(marked, section, {}, flawed=True)
    if isinstance(value, list):
        report.add(marked.source, f"{section}.{kind} must be a mapping of its fields, not a list")
        report.hide(marked)
        return Block(marked, section, {}, flawed=True)
    try:
        fields = read(KINDS[kind], value)
    except ValueError as error:
        report.add(marked.source, f"{section}.{kind}: {error}")
        report.hide(marked)
        return Block(marked, section, {}, flawed=True)
    if fields is None:
        return Block(marked, section, None)
    if type(value) is not dict:  # the fields of a mapping are marked already
        fields = type(fields)((field, Marked(bare, marked.at, None, marked.file)) for field, bare in fields.items())
    flawed = not all(type(entry.value) in PLAIN or entry.is_whole() for entry in fields.values())
    if flawed or not fields.keys() <= FIELDS[kind]:
        for field in fields.keys() - FIELDS[kind]:
            about, into = f"{section}.{kind}", Block(marked, section, {}).into(fields[field])
            text = f"{_unknown(field, fields[field], report)} in {about}{suggest_key(field, kind)}"
            if fields[field].stands_alone() and not HIDDEN[kind].isdisjoint(fields):
                # The rest of a secret that holds a comma, perhaps.
                report.hide_key(fields[field])
                text = f"a key without a value in {about}; use `key: value`, or quote text that contains a comma"
            report.add(fields[field].place, text, about, into)
            report.hide_texts(fields[field])
        whole = {field: entry for field, entry in fields.items() if field in FIELDS[kind] and entry.is_whole()}
        flawed, fields = True, whole
    if not HIDDEN[kind].isdisjoint(fields):
        for field in HIDDEN[kind] & fields.keys():
            report.hide(fields[field])
    return Block(marked, section, fields, flawed=flawed, is_bare=not isinstance(value, dict | BasePolicy))


PLAIN = (str, int, float, bool, type(None))
