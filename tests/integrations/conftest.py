"""Fixtures that export metrics, and end that again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import opero.integrations.prometheus as exported
from opero import Policy, Registry

Series = dict[tuple[str, ...], float]


def series(text: str) -> dict[str, Series]:
    """Read the text of a scrape: name → values of the labels, in the order of their names → number."""
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.fixture
def scraped() -> Iterator[Callable[[Registry], Callable[[], dict[str, Series]]]]:
    """`scraped(registry)` exports a registry; calling the result scrapes it."""
    made: list[CollectorRegistry] = []

    def export(registry: Registry) -> Callable[[], dict[str, Series]]:
        target = CollectorRegistry()
        exported.instrument(registry, target)
        made.append(target)
        collector = exported._collectors[target]
        return lambda: series(collector.text())

    yield export
    for each in made:
        exported.uninstrument(each)


def registry_of(**policies: object) -> Registry:
    """A registry of one profile, "api"."""
    return Registry({"api": Policy(**policies)})  # type: ignore[arg-type]
