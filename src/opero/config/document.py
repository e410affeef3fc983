"""Parses marked data as configuration: the allowed keys, and the short forms of the policies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from opero.config.alerts import read_alerts
from opero.config.fields import is_hidden, suggest_key
from opero.config.mapping import mapping_of, shown
from opero.config.report import HARMLESS
from opero.config.sources import BROKEN, ConfigLayer, Marked, Section, Statement
from opero.errors import message_of, nearest
from opero.patterns import pattern
from opero.policies.base import BasePolicy
from opero.policies.merging import fields_of
from opero.policies.names import DOTTED, NAME
from opero.policies.policy import KINDS
from opero.policies.quantities import quoted
from opero.problems import MASK

if TYPE_CHECKING:
    from opero.config.report import Report

LISTS = {"rate_limit": "limits"}
"""Kinds of policy with a short form that is a list → the field that it sets."""
KEYS = ("policies", "defaults", "functions", "imports", "import_from", "alerts", "extends")
FIELDS = {kind: frozenset(model.model_fields) for kind, model in KINDS.items()}
HIDDEN = {kind: frozenset(field for field in fields if is_hidden(kind, field)) for kind, fields in FIELDS.items()}
FUNCTION = pattern(rf"{DOTTED}:{NAME}(\.({NAME}|<locals>))*")
"""The full name of a function: module:qualname."""
MODULE = pattern(DOTTED)
NAME_ONLY = pattern(NAME)
CLIENT_LIBRARIES = ("aiohttp", "anthropic", "httpx", "httpx2", "openai", "requests")
"""The libraries that an entry of `imports:` may name, for all clients that are made of them."""
CLIENTS = "{}:clients"
"""What the clients of a library are called in `functions:`."""
IMPORT = pattern(rf"{DOTTED}:({NAME}(\.{NAME})*|\*)|{'|'.join(CLIENT_LIBRARIES)}")
"""What an entry of `imports:` binds: module:function, module:Class.method, module:* for all that a module has, or the
clients of a library."""
LONGEST_FUNCTION = 1000
"""The most characters of a name or glob of `functions:`."""


def is_glob(name: str) -> bool:
    """Return whether the name of a `functions:` entry is a glob."""
    return any(character in name for character in "*?[")


def read_document(document: Marked, name: str, report: Report) -> ConfigLayer:
    """Parse the document of a file.

    Args:
        document: a mapping with `policies:` (name → profile), `defaults:` (for all profiles), `functions:` (name or
            glob → policies of these functions), `imports:` (function → its profile), `import_from:` (modules),
            `alerts:` (name → alert) and `extends:` (an environment).
        name: the name of the file in messages.
        report: receives the problems.
    """
    entries = mapping_of(document, "the file", report, advice="start it with `policies:`")
    defaults: Section | None = None
    profiles: dict[str, Section] = {}
    functions: dict[str, Section] = {}
    import_from: Marked | None = None
    extends: Marked | None = None
    alerts: dict[str, Marked] = {}
    imports: dict[str, Marked] = {}
    for key, entry in entries.items():
        if key not in KEYS:
            report.add(
                entry.place, f"unknown key {quoted(key)}{nearest(key, KEYS)} (profiles belong under `policies:`)"
            )
            report.hide_texts(entry)
        elif key == "import_from":
            import_from = _read_modules(entry, report)
        elif key == "extends":
            if isinstance(entry.value, str):
                extends = entry
            elif entry.value not in (None, BROKEN):
                report.add(entry.source, f"extends must be the name of an environment, not {shown(entry.value)}")
        elif entry.value is None:
            continue
        elif key == "alerts":
            alerts = read_alerts(entry, report)
        elif key == "imports":
            imports = _read_imports(entry, report)
        elif key == "defaults":
            defaults = _read_section(entry, "defaults", report)
        elif key == "policies":
            advice = "write the name of each profile, with its policies below it"
            for each, body in mapping_of(entry, "`policies:`", report, advice).items():
                if each:
                    profiles[each] = _read_section(body, f"policies.{each}", report, "extends")
                else:
                    report.add(body.place, "the name of a profile is empty")
        else:
            advice = 'write the name of each function, "module:function", with its policies below it'
            for each, body in mapping_of(entry, "`functions:`", report, advice).items():
                if _check_function(each, body, report):
                    functions[each] = _read_section(body, f"functions.{each}", report, "policy")
    return ConfigLayer(name, defaults, profiles, functions, import_from, alerts, extends, imports)


def _read_imports(marked: Marked, report: Report) -> dict[str, Marked]:
    """Parse `imports`: functions that `opero run` binds, each with the name of its profile; null binds it no more."""
    good: dict[str, Marked] = {}
    advice = 'write "module:function", or a library, and the name of its profile, such as `"requests:get": api`'
    for target, entry in mapping_of(marked, "`imports:`", report, advice).items():
        if not IMPORT.fullmatch(target):
            report.add(entry.place, _no_import(target))
        elif (parent := read_parent(entry, f"imports: {target}", report)) is not None:
            good[target] = parent
    return good


def _no_import(target: str) -> str:
    """Return why an entry of `imports:` is invalid."""
    if NAME_ONLY.fullmatch(target):
        clients = ", ".join(CLIENT_LIBRARIES)
        return (
            f"{quoted(target)} is no library whose clients opero knows: use one of {clients}, or "
            f'name a function, such as "{target}:get"'
        )
    dotted = target.rpartition(".")
    hint = f'; did you mean "{dotted[0]}:{dotted[2]}"?' if dotted[0] and ":" not in target else ""
    return f'{quoted(target)} is no function: use "module:function", "module:Class.method" or "module:*"{hint}'


def _check_function(name: str, body: Marked, report: Report) -> bool:
    if len(name) > LONGEST_FUNCTION:
        report.add(body.place, f"the name of a function has more than {LONGEST_FUNCTION:,} characters; use a glob")
        return False
    if is_glob(name) or FUNCTION.fullmatch(name):
        return True
    module, _, function = name.rpartition(".")
    advice = f'; did you mean "{module}:{function}"?' if module and ":" not in name else ""
    report.add(
        body.place, f'{quoted(name)} is not a function name: use "module:function", or a glob such as "app.*"{advice}'
    )
    return False


def _read_modules(marked: Marked, report: Report) -> Marked | None:
    """Parse `import_from`: a module, or a list of modules."""
    if marked.value is BROKEN:
        return None
    if marked.value is None:  # ambiguous: allow all modules, or none
        report.add(marked.place, "import_from is empty; list modules, use [] to allow none, or remove it")
        return None
    each = marked.value if isinstance(marked.value, list) else [marked]
    good = []
    for one in each:
        if isinstance(one.value, str) and MODULE.fullmatch(one.value):
            good.append(one)
        elif one.value is not BROKEN:
            report.add(
                one.source,
                f"import_from: {shown(one.value)} is not a module name; use a list, such as [app, requests]",
            )
    return Marked(good, marked.at, marked.key, marked.file)


def _read_section(marked: Marked, section: str, report: Report, parent_key: str | None = None) -> Section:
    """Parse a profile, `defaults`, or an entry of `functions:`; null is an empty section."""
    if marked.value is None:
        return Section(section, marked)
    entries = mapping_of(marked, section, report, advice="write policies below it, such as `retry: {retries: 3}`")
    statements: dict[str, Statement] = {}
    parent: Marked | None = None
    enabled: Marked | None = None
    flawed = not isinstance(marked.value, dict)
    for key, entry in entries.items():
        if key in KINDS:
            statements[key] = read_statement(key, entry, section, report)
        elif key == parent_key:
            parent = read_parent(entry, f"{section}.{key}", report)
            flawed = flawed or parent is None
        elif key == "enabled":
            enabled = _read_switch(entry, f"{section}.enabled", report)
        elif key == "extends" and section == "defaults":
            report.add(entry.place, "`defaults:` cannot extend a profile; remove this")
        else:
            # The value of an unknown key may be a secret.
            advice = suggest_key(key, value=entry.plain(), parent=parent_key)
            report.add(
                entry.place,
                f"{_unknown(key, entry, report)} in {section}{advice}",
                section,
                Statement(marked, section, {}).into(entry),
            )
            report.hide_texts(entry)
    return Section(section, marked, statements, parent, flawed=flawed, enabled=enabled)


def _read_switch(marked: Marked, what: str, report: Report) -> Marked | None:
    """Parse the switch of all policies of a section."""
    if isinstance(marked.value, bool):
        return marked
    if marked.value is not BROKEN:
        report.add(marked.source, f"{what} must be true or false, not {shown(marked.value)}")
        report.hide(marked)
    return None


def _unknown(key: str, entry: Marked, report: Report) -> str:
    """Describe an unknown key; "secret:hunter2", without a space, is a key that contains a secret."""
    name, separator, rest = re.fullmatch(r"([^:=]*)([:=]*)(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]
    if not separator or HARMLESS.fullmatch(rest.strip()):
        return f"unknown key {quoted(key)}"
    report.hide_key(entry)
    return f"unknown key {quoted(name + separator + MASK)}"


def read_parent(marked: Marked, what: str, report: Report) -> Marked | None:
    """Parse the name of the profile to start from; null means none."""
    if marked.value is None or isinstance(marked.value, str):
        return marked
    if marked.value is not BROKEN:
        report.add(marked.source, f"{what} must be the name of one profile, not {shown(marked.value)}")
        report.hide(marked)
    return None


def read_statement(kind: str, marked: Marked, section: str, report: Report) -> Statement:
    """Parse a statement about a policy: null, true, false, a bare value, a mapping, or, from code, a policy object.

    Args:
        kind: "retry", "cache", and so on.
        marked: the value.
        section: "defaults", "policies.<name>" or "functions.<name>".
        report: receives unknown fields; values are validated after merging.
    """
    value = marked.value
    if value is BROKEN:
        return Statement(marked, section, {}, flawed=True)
    if isinstance(value, list) and kind in LISTS:
        marked, value = Marked({LISTS[kind]: marked}, marked.at, marked.key, marked.file), {LISTS[kind]: marked}
    if isinstance(value, list):
        report.add(marked.source, f"{section}.{kind} must be a mapping of its fields, not a list")
        report.hide(marked)
        return Statement(marked, section, {}, flawed=True)
    try:
        fields = value if type(value) is dict else fields_of(KINDS[kind], value)
    except ValueError as error:
        report.add(marked.source, f"{section}.{kind}: {message_of(error)}")
        report.hide(marked)
        return Statement(marked, section, {}, flawed=True)
    if fields is None:
        return Statement(marked, section, None)
    if type(value) is not dict:  # the values of a mapping are already marked
        fields = type(fields)((field, Marked(bare, marked.at, None, marked.file)) for field, bare in fields.items())
    flawed = not all(type(entry.value) in PLAIN or entry.is_whole() for entry in fields.values())
    if flawed or not fields.keys() <= FIELDS[kind]:
        for field in fields.keys() - FIELDS[kind]:
            about, into = f"{section}.{kind}", Statement(marked, section, {}).into(fields[field])
            text = f"{_unknown(field, fields[field], report)} in {about}{suggest_key(field, kind)}"
            if fields[field].is_bare_key() and not HIDDEN[kind].isdisjoint(fields):
                # It may be the rest of a secret that contains a comma.
                report.hide_key(fields[field])
                text = f"a key without a value in {about}; use `key: value`, or quote text that contains a comma"
            report.add(fields[field].place, text, about, into)
            report.hide_texts(fields[field])
        whole = {field: entry for field, entry in fields.items() if field in FIELDS[kind] and entry.is_whole()}
        flawed, fields = True, whole
    if not HIDDEN[kind].isdisjoint(fields):
        for field in HIDDEN[kind] & fields.keys():
            report.hide(fields[field])
    return Statement(marked, section, fields, flawed=flawed, is_bare=not isinstance(value, dict | BasePolicy))


PLAIN = (str, int, float, bool, type(None))
