"""Validates merged profiles, and attributes each error to the place that caused it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from opero.config.fields import is_hidden, is_list
from opero.config.mapping import shown
from opero.errors import describe, nearest
from opero.policies.base import BasePolicy
from opero.policies.contradictions import contradictions
from opero.policies.policy import KINDS, Policy
from opero.policies.quantities import quoted

if TYPE_CHECKING:
    from opero.config.composition import Profile
    from opero.config.report import Report
    from opero.config.sources import Leaf, Marked, Source
    from opero.policies.contradictions import Contradiction


Known = dict[Any, BasePolicy]
"""What policies were made of → those policies. Most profiles of a large file share most of their values."""


def validate(name: str, profile: Profile, report: Report, known: Known | None = None) -> Policy | None:
    """Return the policy that a merged profile describes, or None if it is invalid.

    Args:
        name: the name of the section: "policies.api".
        profile: the merged profile.
        report: receives the problems, each at a line and column of a file or at a variable.
        known: policies that were validated under the same conditions, to which those of the profile are added. They are
            immutable, so profiles may share them. Default: none.
    """
    values = profile.values()
    new = {} if known is None else _replace_known(values, known)
    try:
        policy = Policy.model_validate(values)
    except ValidationError as error:
        wrong = _by_kind(error)
        for kind, found in wrong.items():
            _report_fields(kind, found, profile, report)
            _report_whole(name, kind, found, profile, report)
        _report_among_valid(name, wrong, profile, report)
    except (Exception, SystemExit):  # noqa: BLE001  # importing a module may raise anything
        _report_imports(profile, report)
    else:
        if known is not None:
            known.update((key, each) for kind, key in new.items() if (each := getattr(policy, kind)) is not None)
        return None if _report_contradictions(name, policy, (), profile, report) else policy
    return None


def _replace_known(values: dict[str, Any], known: Known) -> dict[str, Any]:
    """Put policies that are known in the place of what they are made of; return the keys of the others by kind."""
    new: dict[str, Any] = {}
    for kind, fields in values.items():
        if type(fields) is not dict:  # what objects of code state, which may mean something else
            continue
        try:
            key = kind, *((field, type(each), _hashable(each)) for field, each in fields.items())
            found = known.get(key)
        except TypeError:
            continue  # it contains a mapping
        if found is None:
            new[kind] = key
        else:
            values[kind] = found
    return new


def _hashable(value: Any) -> Any:
    """Return a value as part of a key: 1, 1.0 and true differ."""
    return tuple([(type(each), _hashable(each)) for each in value]) if type(value) is list else value


def _report_among_valid(name: str, wrong: Mapping[str, Sequence[Any]], profile: Profile, report: Report) -> None:
    """Report contradictions, as far as they can be detected beside invalid values."""
    valid: dict[str, Any] = {}
    for kind, fields in profile.values().items():
        bad = _bad_fields(wrong.get(kind, ()))
        if kind not in wrong:
            valid[kind] = fields
        elif bad:
            left = type(fields)((field, value) for field, value in fields.items() if field not in bad)
            try:
                Policy.model_validate({kind: left})
            except ValidationError as error:
                _report_whole(name, kind, [*_by_kind(error)[kind], *wrong[kind]], profile, report)
            else:
                valid[kind] = left
    _report_contradictions(name, Policy.model_validate(valid), wrong, profile, report)


def _report_contradictions(name: str, policy: Policy, wrong: Collection[str], profile: Profile, report: Report) -> bool:
    """Report contradictions between policies, and return whether there are any. If part of a policy is invalid, only
    fields that are set explicitly count, since the invalid part may have been meant to set the others."""
    unsure = {kind for kind in profile.kinds() if kind in wrong or profile.is_flawed(kind)}
    explicit = {f"{kind}.{field}" for kind in unsure for field in profile.given(kind)}
    found = False
    for each in contradictions(policy):
        if all(field in explicit for field in each.fields if field.partition(".")[0] in unsure):
            found = _report_contradiction(name, each, profile, report) or found
    return found


def _bad_fields(found: Sequence[Any]) -> set[str]:
    return {each["loc"][1] for each in found if len(each["loc"]) > 1 and each["type"] != "missing"}


def check_fields(profile: Profile, report: Report) -> None:
    """Validate each value on its own; required fields may be missing, as in `defaults`."""
    try:
        Policy.model_validate(profile.values())
    except ValidationError as error:
        for kind, found in _by_kind(error).items():
            _report_fields(kind, found, profile, report)
    except (Exception, SystemExit):  # noqa: BLE001
        _report_imports(profile, report)


def _report_imports(profile: Profile, report: Report) -> None:
    """Find and report the values that name a module whose import fails."""
    for kind in profile.kinds():
        for field, leaf in profile.given(kind).items():
            try:
                KINDS[kind].model_validate({field: leaf.value})
            except ValidationError:
                continue  # other fields are missing
            except (Exception, SystemExit) as error:  # noqa: BLE001
                text = f"{leaf.section}.{kind}.{field}: importing the module that it names failed: {describe(error)}"
                report.add(leaf.source, text)


def _by_kind(error: ValidationError) -> dict[str, list[Any]]:
    kinds: dict[str, list[Any]] = {}
    for each in error.errors(include_url=False):
        kinds.setdefault(str(each["loc"][0]), []).append(each)
    return kinds


def _report_fields(kind: str, found: Sequence[Any], profile: Profile, report: Report) -> None:
    """Report invalid values. pydantic reports a union once for each type, and a list once for each element."""
    given = profile.given(kind)
    complaints: dict[tuple[str, object], list[Any]] = {}
    for each in found:
        if len(each["loc"]) > 1 and each["loc"][1] in given:
            element = each["loc"][2:] if _is_in_list(each) else None
            complaints.setdefault((each["loc"][1], element), []).append(each)
    for (field, _), wrong in complaints.items():
        leaf = given[field]
        about = f"{leaf.section}.{kind}.{field}"
        if _is_in_list(wrong[0]) and len(wrong[0]["loc"]) > 3:
            about = ".".join(map(str, (about, *wrong[0]["loc"][2:])))
        statement = profile.statement_of(kind, field)
        place = _place(kind, field, statement.fields[field], wrong)
        report.add(
            place, f"{about}: {_explain(kind, field, leaf, wrong)}", about, statement.into(statement.fields[field])
        )


def _place(kind: str, field: str, written: Marked, wrong: Sequence[Any]) -> Source:
    """Return the place of an error within a value: a key or value of a mapping, or an element of a list."""
    path = wrong[0]["loc"][2:]
    is_in_list = _is_in_list(wrong[0]) and isinstance(written.value, list)
    if is_in_list:
        written, path = written.value[path[0]], path[1:]
    while path and isinstance(written.value, dict) and path[0] in written.value:
        written, path = written.value[path[0]], path[1:]
        if not path and wrong[0]["type"] == "unknown_field":
            return written.place
    if is_in_list:
        return written.source
    if isinstance(written.value, list) and is_list(kind, field):
        wrong_ones = (each.source for each in written.value if not _holds(kind, field, [each.plain()]))
        return next(wrong_ones, written.source)
    return written.source


def _is_in_list(wrong: Any) -> bool:
    """Return whether an error is about an element of a list, or a field of such an element."""
    return wrong["type"] in ("element", "unknown_field") and len(wrong["loc"]) > 2 and isinstance(wrong["loc"][2], int)


def _holds(kind: str, field: str, value: Any) -> bool:
    """Return whether a value is valid for a field, whatever the other fields are."""
    try:
        KINDS[kind].model_validate({field: value})
    except ValidationError as error:
        return not any(each["loc"][:1] == (field,) for each in error.errors(include_url=False))
    except (Exception, SystemExit):  # noqa: BLE001  # importing a module may raise anything
        return False
    return True


def _explain(kind: str, field: str, leaf: Leaf, wrong: Sequence[Any]) -> str:
    subject = "the value" if is_hidden(kind, field) else shown(leaf.value)
    subject = quoted(leaf.value) if isinstance(leaf.value, date) else subject
    texts: list[str] = []
    choices: list[str] = []
    for each in wrong:
        text = _message(each)
        if text.startswith("Input should"):
            text = text.replace("Input", subject, 1) if not texts else text.removeprefix("Input should ")
        if each["type"] == "string_type":
            text += _quote(leaf.value)
        texts.append(text)
        if each["type"] == "literal_error":
            choices += re.findall(r"'([^']*)'", each["ctx"]["expected"])
    hint = nearest(leaf.value, choices) if choices and isinstance(leaf.value, str) else ""
    return ", or ".join(dict.fromkeys(texts)) + (hint if "did you mean" in hint else "")


def _quote(value: object) -> str:
    """Suggest quotes for a value that YAML does not parse as text."""
    if isinstance(value, bool):
        return "; quote it (YAML reads yes and on as true, no and off as false)"
    return f'; quote it: "{value}"' if isinstance(value, int | float | date) else ""


def _report_whole(name: str, kind: str, found: Sequence[Any], profile: Profile, report: Report) -> None:
    """Report missing fields and contradictions within a policy. If part of it is invalid, report only contradictions of
    valid fields that are set explicitly."""
    given = profile.given(kind)
    bad = _bad_fields(found)
    is_sure = not bad and not profile.is_flawed(kind)
    for each in found:
        if each["type"] == "missing":
            field = each["loc"][1]
            if is_sure:
                text = f"{name}.{kind}: missing field {field!r}; use `{kind}: {{{field}: …}}`"
                report.add(profile.place(kind), text)
        elif len(each["loc"]) == 1:
            text = _message(each)
            about = [field for field in KINDS[kind].model_fields if re.search(rf"\b{field}\b", text)]
            if not is_sure and not (about and all(field in given and field not in bad for field in about)):
                continue
            named = [given[field] for field in given if field in about]
            # The value that was set last is the place of the error.
            *before, place = [leaf.source for leaf in named or given.values()] or [profile.place(kind)]
            others = " and ".join(str(source) for source in before if source != place)
            report.add(place, f"{name}.{kind}: {text}{f' (see also {others})' if others else ''}")


def _report_contradiction(name: str, found: Contradiction, profile: Profile, report: Report) -> bool:
    """Report a contradiction at the value that was set last, unless code has set any: code may contradict itself."""
    given = {kind: profile.given(kind) for kind in {field.partition(".")[0] for field in found.fields}}
    leaves = [
        given[kind][field] for kind, _, field in (each.partition(".") for each in found.fields) if field in given[kind]
    ]
    if any(leaf.section == "" for leaf in leaves):
        return False
    *before, last = dict.fromkeys(leaf.source for leaf in sorted(leaves, key=lambda leaf: _rank(name, leaf)))
    others = " and ".join(map(str, before))
    report.add(last, f"{name}: {found.text}{f' (see also {others})' if others else ''}")
    return True


def _rank(name: str, leaf: Leaf) -> tuple[int, bool, bool, int, int]:
    """Return the sort key for which value was set later: in the section itself, a variable, an environment's file."""
    source = leaf.source
    is_variable = source.line is None or bool(source.by)
    is_base = source.name.rpartition("/")[2] == "base.yaml"
    inherited = leaf.section.startswith("policies.") and leaf.section != name
    nearness = 0 if leaf.section == "defaults" else 1 if inherited else 2
    return nearness, is_variable, not is_base, source.line or 0, source.column or 0


def _message(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
