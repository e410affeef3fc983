"""The layer of `Registry.override`, above all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.config.document import read_document
from opero.config.report import Report
from opero.config.sources import ConfigLayer, Marked, Source
from opero.errors import ConfigError, PolicyNotFoundError, nearest
from opero.policies.policy import Policy

if TYPE_CHECKING:
    from opero.config.configuration import Configuration


def layer_of(
    profiles: Mapping[str, Any], functions: Mapping[str, Any], configuration: Configuration, source: Source
) -> ConfigLayer:
    """Make a layer of overrides, validated as strictly as a file.

    Raises:
        PolicyNotFoundError: there is no such profile.
        ConfigError: the overrides are invalid.
    """
    for name in profiles:
        if name not in configuration.policies:
            raise PolicyNotFoundError(f"there is no profile {name!r}{nearest(name, configuration.policies)}", name=name)
    for key, sections in (("policies", profiles), ("functions", functions)):
        for name in (name for name, value in sections.items() if value is None):
            raise ConfigError(
                f"override: {key}.{name} is None: use {{}} to change nothing, or None for single policies, as in "
                "{'retry': None}"
            )
    report = Report()
    layer = read_document(_mark({"policies": profiles, "functions": functions}, source), str(source), report)
    report.raise_if_any()
    return layer


def _mark(value: Any, source: Source) -> Marked:
    if isinstance(value, Policy):
        value = value._statements()
    if isinstance(value, Mapping):
        return Marked({name: _mark(each, source) for name, each in value.items()}, source)
    return Marked([_mark(each, source) for each in value] if isinstance(value, list) else value, source)
