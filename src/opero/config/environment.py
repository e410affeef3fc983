"""Parses environment variables as a layer of configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from opero.config.document import LISTS, read_parent, read_statement
from opero.config.fields import OPTIONS, admits_none, is_json, is_list, is_secret
from opero.config.sources import BROKEN, ConfigLayer, Marked, Section, Source, Statement, mark
from opero.config.unknown_variables import UnknownVariables
from opero.config.variable_names import ALERTS, PREFIX, RESERVED, RESERVED_PREFIX, Target, fold
from opero.errors import message_of
from opero.policies.json_text import NotJSONError, parse_json
from opero.policies.merging import overlay
from opero.policies.policy import KINDS
from opero.policies.quantities import quoted

if TYPE_CHECKING:
    from opero.config.report import Report

TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NOTHING = ("null", "none")


class RawValue(NamedTuple):
    """The text of a variable, and its source."""

    text: str
    source: Source

    def __repr__(self) -> str:
        return f"RawValue({self.source!s})"  # the text may be secret


def process_variables(environ: Mapping[str, str]) -> dict[str, RawValue]:
    """Return the variables of a process that start with OPERO_."""
    return {name: RawValue(text, Source(name)) for name, text in environ.items() if name.upper().startswith(PREFIX)}


def read_enabled(raw: Mapping[str, RawValue], report: Report) -> bool | None:
    """Return `OPERO_ENABLED`, or None if it is not set."""
    for name, (text, source) in raw.items():
        if name.upper() == "OPERO_ENABLED" and text.strip():
            value = _switch(text)
            if value is None:
                report.add(source, f"{quoted(text)} is invalid: use true or false")
            return value
    return None


def _switch(text: str) -> bool | None:
    return {**TRUTH, "1": True, "0": False}.get(text.strip().lower())


def read_variables(
    raw: Mapping[str, RawValue],
    profiles: Iterable[str],
    functions: Iterable[str],
    report: Report,
    *,
    name: str = "environment variables",
    complete: bool = True,
) -> ConfigLayer:
    """Parse the variables that start with OPERO_, in upper or lower case, in either of two forms.

    - flat, `OPERO_<PROFILE>_<OPTION>`: the flat options of `@opero` and `@opmap` (`OPERO_API_RETRIES`,
      `OPERO_API_CACHE_TTL`), `BACKOFF` for `BACKOFF_FACTOR`, and each policy by its name, with its
      short form, true, false, null, or a JSON mapping (`OPERO_API_RATE_LIMIT=50/s`, `OPERO_API_CACHE=false`), and
      `OPERO_API_ENABLED=false`, which switches all of them off;
    - nested, `OPERO_POLICIES__API__RETRY__RETRIES`, `OPERO_DEFAULTS__RETRY__RETRIES` and, for an entry of `functions:`,
      `OPERO_FUNCTIONS__APP_USERS_GET_USER__CACHE__TTL`, for every field.

    Every field of a policy has a flat name as well: `OPERO_API_CIRCUIT_BREAKER_OPEN_FOR`.

    Lists are separated by commas, or JSON. "null" or "none" removes a policy, or means None if the field allows it. An
    empty value is an error, since it is ambiguous. In the name of a profile or function, every character other than a
    letter or digit becomes "_".

    Args:
        raw: the variables; those of alerts are left out (see `alert_variables`).
        profiles, functions: the names that the files define; a variable cannot define new ones.
        report: receives misspelt, ambiguous, and conflicting variables, and those of others (see `UnknownVariables`).
        name: the name of these variables in messages.
        complete: whether all names are known. If not, unknown variables are not reported.
    """
    names, entries = list(profiles), list(functions)
    index = _Index(names, entries)
    sections: dict[str, _SectionBuilder] = {}
    spelled: dict[str, Source] = {}
    unknown = UnknownVariables(names, entries)
    tests_are_others = not any(f"{PREFIX}{fold(each)}_".upper().startswith(RESERVED_PREFIX) for each in names)
    relevant = [each for each in raw if each.upper().startswith(PREFIX) and not each.upper().startswith(ALERTS)]
    for variable in sorted(relevant, key=lambda each: (raw[each].source.line or 0, each)):
        text, source = raw[variable]
        upper = variable.upper()
        if upper in spelled:
            report.add(source, f"is also set as {spelled[upper]}, and names are case-insensitive; unset one of them")
            continue
        spelled[upper] = source
        targets = index.targets(fold(upper.removeprefix(PREFIX)))
        if len(targets) > 1:
            _report_ambiguous(source, targets, report)
        elif targets:
            target = targets[0]
            try:
                value = mark(_parse(target, text), source)
            except ValueError as error:
                report.add(source, message_of(error))
                value = None
            sections.setdefault(target.section, _SectionBuilder(target.section, source, report)).add(
                target, source, value
            )
        elif complete and upper not in RESERVED and not (upper.startswith(RESERVED_PREFIX) and tests_are_others):
            unknown.judge(upper, text, source, report)
    read = {each: collected.section() for each, collected in sections.items()}
    return ConfigLayer(name, read.get("defaults"), _named("policies.", read), _named("functions.", read))


def _named(prefix: str, sections: Mapping[str, Section]) -> dict[str, Section]:
    return {name.removeprefix(prefix): each for name, each in sections.items() if name.startswith(prefix)}


PATHS: dict[str, tuple[str | None, str | None]] = {
    "enabled": ("enabled", None),
    **{kind: (kind, None) for kind in KINDS},
    **{f"{kind}__{field}": (kind, field) for kind, model in KINDS.items() for field in model.model_fields},
}
"""What follows the name of a section in a nested variable → the policy and field."""


LONGEST_OPTION = max(map(len, OPTIONS))


class _Index:
    """Finds what variables mean in time that does not depend on the number of profiles and functions."""

    def __init__(self, profiles: Iterable[str], functions: Iterable[str]) -> None:
        self._groups = {
            "policies": (self._folded(profiles), {**PATHS, "extends": (None, None)}),
            "functions": (self._folded(functions), {**PATHS, "policy": (None, None)}),
        }

    @staticmethod
    def _folded(names: Iterable[str]) -> dict[str, list[str]]:
        folded: dict[str, list[str]] = {}
        for name in names:
            folded.setdefault(fold(name), []).append(name)
        return folded

    def targets(self, name: str) -> list[Target]:
        """Return everything that a variable's normalized name, without its prefix, can mean."""
        found: list[Target] = []
        root, _, rest = name.partition("__")
        if root == "defaults" and rest in PATHS:
            found.append(Target(root, *PATHS[rest]))
        if root in self._groups:
            folded, paths = self._groups[root]
            for path, meant in paths.items():
                if rest.endswith(f"__{path}"):
                    names = folded.get(rest[: -len(path) - 2], ())
                    found += [Target(f"{root}.{each}", *meant) for each in names]
        folded, _ = self._groups["policies"]
        flat: list[Target] = []
        at = name.rfind("_")
        while at >= 0 and len(name) - at <= LONGEST_OPTION + 1:
            option_of = OPTIONS.get(name[at + 1 :])
            if option_of is not None:
                flat = [Target(f"policies.{each}", *option_of) for each in folded.get(name[:at], ())] + flat
            at = name.rfind("_", 0, at)
        return found + flat


def _parse(target: Target, text: str) -> Any:
    """Parse the text of a variable; numbers and durations are left to the policy model."""
    if text and target.field is not None and _is_secret_text(target):
        return text  # whitespace may be significant
    text = text.strip()
    word = text.lower()
    if not text:
        whole = target.kind is not None and target.field is None
        raise ValueError(f"is empty; unset it{', or use null to remove the policy' if whole else ''}")
    if target.kind is None:
        return None if word in NOTHING else text
    if target.kind == "enabled":
        enabled = _switch(text)
        if enabled is None:
            raise ValueError(f"{text!r} is invalid: use true or false")
        return enabled
    if target.field is None:
        if word in NOTHING or word in TRUTH:
            return TRUTH.get(word)
        return _json(text) if text.startswith(("{", "[") if target.kind in LISTS else "{") else text
    if word in NOTHING and admits_none(target.kind, target.field):
        return None
    if is_list(target.kind, target.field):
        if text.startswith("["):
            return _json(text)
        return [each.strip() for each in text.split(",")] if "," in text else text.strip()
    if is_json(target.kind, target.field):
        with suppress(NotJSONError):
            return parse_json(text)
    return text


def _is_secret_text(target: Target) -> bool:
    kind, field = target.kind, target.field
    return kind is not None and field is not None and is_secret(kind, field) and not is_list(kind, field)


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except NotJSONError as error:
        raise ValueError(f"is not valid JSON: {message_of(error)}") from error


class _SectionBuilder:
    """Collects the variables of one section. No two may set the same field, since they have no order."""

    def __init__(self, name: str, source: Source, report: Report) -> None:
        self._name = name
        self._place = Marked(None, source)
        self._report = report
        self._statements: dict[str, Statement] = {}
        self._parent: Marked | None = None
        self._enabled: Marked | None = None

    def add(self, target: Target, source: Source, value: Marked | None) -> None:
        """Add the value of one variable; None if it could not be parsed."""
        if target.kind is None:
            self._parent = read_parent(value, str(target), self._report) if value is not None else None
            return
        if target.kind == "enabled":
            if self._enabled is not None:
                self._report.add(source, f"sets {target}, and so does {self._enabled.source}; unset one of them")
            self._enabled = value
            return
        if value is None:
            statement = Statement(Marked(BROKEN, source), self._name, {}, flawed=True)
        else:
            whole = value if target.field is None else Marked({target.field: value}, source)
            statement = read_statement(target.kind, whole, self._name, self._report)
            statement.is_bare = statement.is_bare or target.field is not None
        held = self._statements.get(target.kind)
        self._statements[target.kind] = statement if held is None else self._join(target.kind, held, statement)

    def _join(self, kind: str, held: Statement, statement: Statement) -> Statement:
        if held.removed or statement.removed:
            text = f"conflicts with {held.source}, which also removes or sets {self._name}.{kind}; unset one of them"
            self._report.add(statement.source, text)
        for field in sorted(held.fields.keys() & statement.fields.keys()):
            other = held.fields[field].source
            self._report.add(
                statement.source, f"sets {self._name}.{kind}.{field}, and so does {other}; unset one of them"
            )
        flawed, is_bare = held.flawed or statement.flawed, held.is_bare and statement.is_bare
        return Statement(
            held.whole, self._name, overlay(held.content, statement.content), flawed=flawed, is_bare=is_bare
        )

    def section(self) -> Section:
        return Section(self._name, self._place, self._statements, self._parent, enabled=self._enabled)


def _report_ambiguous(source: Source, targets: list[Target], report: Report) -> None:
    ways = list(dict.fromkeys(target.nested for target in targets))
    if len(ways) > 1:
        advice = f"use {' or '.join(ways)}"
    elif targets[0].section.startswith("functions."):
        advice = "set it in a file, as the names of these functions do not differ in letters and digits"
    else:
        advice = "rename one of the profiles, whose names do not differ in letters and digits"
    report.add(source, f"is ambiguous, as it can mean {' or '.join(map(str, targets))}; {advice}")
