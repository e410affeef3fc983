"""Mappings of a file, and values as messages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.config.sources import BROKEN, Marked
from opero.errors import shortened
from opero.policies.quantities import quoted

if TYPE_CHECKING:
    from opero.config.report import Report


def shown(value: Any) -> str:
    """Return a value as messages show it, in YAML notation."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return shortened(quoted(value), 60)


def mapping_of(marked: Marked, what: str, report: Report, advice: str) -> dict[str, Marked]:
    """Return the contents of a mapping; none, and a problem, if it is something else."""
    if isinstance(marked.value, dict):
        return marked.value
    if marked.value is not BROKEN:
        # Text may be a misplaced secret.
        it = "text" if isinstance(marked.value, str) else shown(marked.value)
        report.add(marked.source, f"{what} must be a mapping, not {it}; {advice}")
        report.hide(marked)
    return {}
