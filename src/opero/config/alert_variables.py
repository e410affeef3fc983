"""The variables that set fields of alerts: `OPERO_ALERTS__API_FAILING__REPEAT=30m`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from opero.config.alerts import alert_fields, urls_in
from opero.config.environment import NOTHING
from opero.config.sources import Marked, mark
from opero.config.variable_names import ALERTS, fold
from opero.errors import message_of, nearest
from opero.policies.json_text import NotJSONError, parse_json

if TYPE_CHECKING:
    from opero.config.environment import RawValue
    from opero.config.report import Report

ADMIT_NONE = ("text", "policy", "function")
"""Fields for which "null" means None."""


def read_alert_variables(raw: Mapping[str, RawValue], alerts: Iterable[str], report: Report) -> dict[str, Marked]:
    """Return name of an alert → the fields that variables set; `when` and `notify` may be JSON.

    Args:
        raw: the variables.
        alerts: the names of the alerts that the files define; a variable cannot define new ones.
        report: receives unknown alerts and fields, and what is not JSON.
    """
    names = {fold(each): each for each in alerts}
    found: dict[str, dict[str, Marked]] = {}
    for variable in sorted(each for each in raw if each.upper().startswith(ALERTS)):
        text, source = raw[variable]
        folded = fold(variable.upper().removeprefix(ALERTS))
        targets = [(names[each], folded.removeprefix(f"{each}__")) for each in names if folded.startswith(f"{each}__")]
        target = next((each for each in targets if each[1] in alert_fields()), None)
        try:
            if target is None:
                raise ValueError(_unknown(folded, names))
            value = _parse(target[1], text.strip())
        except ValueError as error:
            report.add(source, message_of(error))
            continue
        found.setdefault(target[0], {})[target[1]] = mark(value, source)
    for each in (url for fields in found.values() for url in urls_in(fields)):
        each.value = SecretStr(each.value)
    return {name: Marked(fields, next(iter(fields.values())).source) for name, fields in found.items()}


def _parse(field: str, text: str) -> Any:
    if not text:
        raise ValueError("is empty; unset it")
    if text.lower() in NOTHING and field in ADMIT_NONE:
        return None
    try:
        return parse_json(text) if text.startswith(("{", "[")) else text
    except NotJSONError as error:
        raise ValueError(f"is not valid JSON: {message_of(error)}") from None


def _unknown(folded: str, names: Mapping[str, str]) -> str:
    short, _, field = folded.partition("__")
    if short in names:
        return f"an alert has no field {field!r}{nearest(field, alert_fields())}"
    return f"there is no alert {short!r}{nearest(short, names) or '; no file defines one'}"
