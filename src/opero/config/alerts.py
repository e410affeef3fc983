"""The `alerts:` of files and variables: read, laid over each other field by field, and validated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, ValidationError

from opero.config.mapping import mapping_of, shown
from opero.config.sources import BROKEN, Leaf, Marked
from opero.errors import describe, nearest
from opero.runtime.named_secrets import PREFIX

if TYPE_CHECKING:
    from opero.config.report import Report
    from opero.config.sources import ConfigLayer, Source
    from opero.policies.alert import Alert


@cache
def alert_fields() -> frozenset[str]:
    """Return the fields of an alert."""
    from opero.policies.alert import Alert  # few programs have alerts, and models are expensive

    return frozenset(Alert.model_fields)


def read_alerts(marked: Marked, report: Report) -> dict[str, Marked]:
    """Parse `alerts:` as name → a mapping of known fields, or null for no such alert."""
    found: dict[str, Marked] = {}
    advice = "write the name of each alert, with its fields below it"
    for name, body in mapping_of(marked, "`alerts:`", report, advice).items():
        if not name:
            report.add(body.place, "the name of an alert is empty")
        elif body.value is None:
            found[name] = body
        else:
            entries = mapping_of(body, f"alerts.{name}", report, advice="write its fields below it, such as `when:`")
            for field in [each for each in entries if each not in alert_fields()]:
                text = f"unknown key {field!r} in alerts.{name}{nearest(field, alert_fields())}"
                report.add(entries[field].place, text, f"alerts.{name}")
                report.hide_texts(entries[field])
            fields = {field: each for field, each in entries.items() if field in alert_fields() and each.is_whole()}
            for each in urls_in(fields):
                report.hide(each)
                each.value = SecretStr(each.value)
            found[name] = Marked(fields, body.at, body.key, body.file)
    return found


def urls_in(fields: Mapping[str, Marked]) -> Iterator[Marked]:
    """Yield the URLs of webhooks, which are secret, among the fields of an alert."""
    for each in fields["notify"].walk() if "notify" in fields else ():
        if isinstance(each.value, str) and "://" in each.value:
            yield each


def references_in(layer: ConfigLayer) -> Iterator[tuple[str, Marked]]:
    """Yield the references to secrets in the alerts of a layer, each with what it is in."""
    for name, body in layer.alerts.items():
        fields = body.value if isinstance(body.value, dict) else {}
        for each in fields["notify"].walk() if "notify" in fields else ():
            if isinstance(each.value, str) and each.value.startswith(PREFIX):
                yield f"alerts.{name}.notify", each


def fields_of(layers: Iterable[ConfigLayer]) -> dict[str, dict[str, list[Marked]]]:
    """Return name of an alert → field → its values, the effective one last. Null removes what is below it."""
    found: dict[str, dict[str, list[Marked]]] = {}
    for layer in layers:
        for name, body in layer.alerts.items():
            if body.value is None:
                found.pop(name, None)
                continue
            fields = found.setdefault(name, {})
            for field, each in body.value.items():
                fields.setdefault(field, []).append(each)
    return found


def leaves_of(layers: Iterable[ConfigLayer], name: str) -> dict[str, Leaf]:
    """Return field → effective leaf of an alert, without defaults."""
    leaves: dict[str, Leaf] = {}
    for field, values in fields_of(layers).get(name, {}).items():
        leaf: Leaf | None = None
        for each in values:
            leaf = Leaf(each.plain(), each.source, f"alerts.{name}", shadowed=leaf)
        assert leaf is not None
        leaves[field] = leaf
    return leaves


def alerts_of(layers: Sequence[ConfigLayer], report: Report, *, complete: bool) -> dict[str, Alert]:
    """Return the alerts that layers define; problems are added to `report`.

    Args:
        layers: lowest precedence first.
        report: receives the problems, each at its line and column.
        complete: whether all layers could be read. If not, missing fields are not reported.
    """
    found: dict[str, Alert] = {}
    for name, values in fields_of(layers).items():
        from opero.policies.alert import Alert

        fields = {field: each[-1] for field, each in values.items()}
        try:
            found[name] = Alert.model_validate({field: each.plain() for field, each in fields.items()})
        except ValidationError as error:
            for each in error.errors(include_url=False):
                if each["type"] != "missing" or len(each["loc"]) > 1:
                    _report(name, fields, each, report)
                elif complete:
                    place = next(layer.alerts[name].place for layer in layers if name in layer.alerts)
                    text = "missing field 'when'; use `when: {share: 20%}`, or another condition"
                    report.add(place, f"alerts.{name}: {text}")
        except (Exception, SystemExit) as error:  # noqa: BLE001  # importing a module may raise anything
            place = fields["notify"].source if "notify" in fields else next(iter(fields.values())).source
            report.add(place, f"alerts.{name}.notify: importing the module that it names failed: {describe(error)}")
    return found


def _report(name: str, fields: Mapping[str, Marked], error: Any, report: Report) -> None:
    path = error["loc"]
    marked, at = fields[path[0]], [str(path[0])]
    place: Source = marked.source
    for part in path[1:]:
        value = marked.value
        is_in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if not is_in_list and not (isinstance(value, dict) and part in value):
            break
        marked = value[part]
        at.append(str(part))
        place = marked.place if error["type"] == "unknown_field" else marked.source
    text = str(error["msg"]).removeprefix("Value error, ")
    if text.startswith("Input should") and marked.value is not BROKEN:
        text = text.replace("Input", shown(marked.plain()), 1)
    report.add(place, f"alerts.{name}.{'.'.join(at)}: {text}")
