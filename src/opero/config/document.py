"""Reads marked data as configuration: which keys may stand where, and the short forms of the policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from opero.config.fields import is_secret, suggest_key
from opero.config.sources import BROKEN, Block, Layer, Leaf, Marked, Section
from opero.errors import nearest
from opero.policies.policy import KINDS

if TYPE_CHECKING:
    from opero.config.report import Report

__all__ = ["read_block", "read_document", "read_extends", "shown"]

KEYS = ("policies", "defaults")
LATER = ("functions", "import_from")


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


def read_document(document: Marked, name: str, report: Report) -> Layer:
    """What a whole file says.

    Args:
        document: the file's data: a mapping with `policies:` (name → profile) and `defaults:` (laid under
            each).
        name: how messages call the file.
        report: takes what is wrong.

    Raises:
        NotImplementedError: `functions:` or `import_from:` stand in it, which a later release reads.
    """
    entries = _mapping(document, "the file", report, cure="begin it with `policies:`")
    defaults: Section | None = None
    profiles: dict[str, Section] = {}
    for key, entry in entries.items():
        if key in LATER:
            raise NotImplementedError(f"{entry.place}: `{key}:` is not implemented yet; remove it")
        if key not in KEYS:
            cure = nearest(key, [*KEYS, *LATER])
            report.add(entry.place, f"unknown key {key!r}{cure} (profiles stand under `policies:`)")
        elif entry.value is None:
            continue
        elif key == "defaults":
            defaults = _read_section(entry, "defaults", report)
        else:
            found = _mapping(entry, "`policies:`", report, cure="write each profile's name and its policies below it")
            profiles = {each: _read_section(body, f"policies.{each}", report) for each, body in found.items()}
    return Layer(name, defaults, profiles)


def _mapping(marked: Marked, what: str, report: Report, cure: str) -> dict[str, Marked]:
    if isinstance(marked.value, dict):
        return marked.value
    if marked.value is not BROKEN:
        report.add(marked.source, f"{what} must be a mapping, but is {shown(marked.value)}; {cure}")
    return {}


def _read_section(marked: Marked, section: str, report: Report) -> Section:
    """One profile, or `defaults`. A null profile says nothing of its own."""
    if marked.value is None:
        return Section(marked.place)
    entries = _mapping(marked, section, report, cure="write policies below it, such as `retry: {retries: 3}`")
    blocks: dict[str, Block] = {}
    extends: Leaf | None = None
    flawed = not isinstance(marked.value, dict)
    for key, entry in entries.items():
        if key in KINDS:
            blocks[key] = read_block(key, entry, section, report)
        elif key == "extends" and section != "defaults":
            extends = read_extends(entry, section, report)
            flawed = flawed or extends is None
        elif key == "extends":
            report.add(entry.place, "`defaults:` lies under every profile and extends none; remove this")
        else:
            report.add(entry.place, f"unknown key {key!r} in {section}{suggest_key(key, value=entry.plain())}")
    return Section(marked.place, blocks, extends, flawed)


def read_extends(marked: Marked, section: str, report: Report) -> Leaf | None:
    """The name of the profile that this one starts from; null: of none."""
    if marked.value is None or isinstance(marked.value, str):
        return Leaf(marked.value, marked.source, section)
    if marked.value is not BROKEN:
        report.add(marked.source, f"{section}.extends takes the name of one profile, not {shown(marked.value)}")
    return None


def read_block(kind: str, marked: Marked, section: str, report: Report) -> Block:
    """One policy in any of its forms: null, true, false, a bare value, or a mapping of its fields.

    Args:
        kind: "retry", "cache", and so on.
        marked: what was written.
        section: "defaults" or "policies.<name>".
        report: takes unknown fields; values are judged later, when the layers are merged.
    """
    place, value = marked.place, marked.value
    if value is None:
        return Block(marked.source, removed=True)
    if value is BROKEN:
        return Block(place, flawed=True)
    if isinstance(value, list):
        report.add(marked.source, f"{section}.{kind} takes a mapping of its fields, not a list")
        return Block(place, flawed=True)
    if isinstance(value, dict):
        entries: dict[str, Marked] = value
    else:
        try:
            entries = {field: Marked(bare, marked.source) for field, bare in KINDS[kind].expand(value).items()}
        except ValueError as error:
            report.add(marked.source, f"{section}.{kind}: {error}")
            return Block(place, flawed=True)
    fields: dict[str, Leaf] = {}
    flawed = False
    for field, entry in entries.items():
        if field not in KINDS[kind].model_fields:
            report.add(entry.place, f"unknown key {field!r} in {section}.{kind}{suggest_key(field, kind)}")
            flawed = True
        elif not entry.is_whole():
            flawed = True
        else:
            fields[field] = _leaf(kind, field, entry, section)
    return Block(place, fields, flawed=flawed)


def _leaf(kind: str, field: str, entry: Marked, section: str) -> Leaf:
    value = entry.plain()
    if is_secret(kind, field) and isinstance(value, str):
        value = SecretStr(value)
    return Leaf(value, entry.source, section)
