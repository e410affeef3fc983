"""Replaces references to secrets, such as `secret:API_KEY`, by their values, which are never shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import SecretStr

from opero.config.alerts import references_in
from opero.errors import ConfigError, message_of
from opero.runtime.named_secrets import PREFIX, resolved

if TYPE_CHECKING:
    from opero.config.report import Report
    from opero.config.sources import ConfigLayer, Marked, Section

FIELDS = (("fallback", "values"),)
"""The kinds of policy and their fields, lists of secrets, in which a reference may stand, besides alerts."""


def resolve_references(layers: Iterable[ConfigLayer], find: Callable[[str], str | None], report: Report) -> None:
    """Replace references to secrets in layers.

    Args:
        layers: the layers, which are changed.
        find: returns the secret of a name; None if there is none.
        report: receives references to secrets that do not exist or cannot be read.
    """
    for layer in layers:
        for section in _sections(layer):
            for about, each in _references(section):
                try:
                    each.value = SecretStr(resolved(each.value, find))
                except (ConfigError, ValueError) as error:
                    report.add(each.source, f"{about}: {message_of(error)}", about)
                    each.value = SecretStr(each.value)
        for about, each in references_in(layer):
            try:
                each.value = SecretStr(resolved(each.value, find))
            except (ConfigError, ValueError) as error:
                report.add(each.source, f"{about}: {message_of(error)}", about)
                each.value = SecretStr("http://missing")  # which is reported already


def _sections(layer: ConfigLayer) -> Iterator[Section]:
    if layer.defaults is not None:
        yield layer.defaults
    yield from layer.profiles.values()
    yield from layer.functions.values()


def _references(section: Section) -> Iterator[tuple[str, Marked]]:
    for kind, field in FIELDS:
        statement = section.statements.get(kind)
        entry = None if statement is None else statement.fields.get(field)
        if entry is not None and isinstance(entry.value, list):
            for each in entry.value:
                if isinstance(each.value, str) and each.value.startswith(PREFIX):
                    yield f"{section.name}.{kind}.{field}", each
