"""Counts as plain data: what is counted, by name where it has names, and how counts of several processes add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opero.failures.kinds import Kind

COUNTS = (
    *("calls", "failures", "retries", "retries_saved", "recoveries", "hedges", "hedge_wins", "fallbacks"),
    *("cache_hits", "cache_misses", "waits", "waited", "rejections", "timeouts"),
)
TABLES = ("errors", "kinds", "statuses", "rejected_by", "waited_for")
MOST_NAMES = 100
"""The most entries of a table; whatever else occurs is counted as "other"."""


class Tables:
    """Counts by name, of what does not succeed at once.

    Attributes:
        errors, kinds, statuses, rejected_by, waited_for: see `Stats`.
        shadow: what policies in shadow would have done, by names such as "rejected_by.bulkhead".
    """

    __slots__ = (*TABLES, "shadow")

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.kinds = {kind.value: 0 for kind in Kind}
        self.statuses: dict[str, int] = {}
        self.rejected_by: dict[str, int] = {}
        self.waited_for: dict[str, float] = {}
        self.shadow: dict[str, float] = {}


def count(table: dict[str, Any], name: str, number: float = 1) -> None:
    """Add to the count of a name. `+=` is atomic, as in `Stats`."""
    try:
        table[name] += number
    except KeyError:
        if len(table) >= MOST_NAMES:
            name = "other"
        table.setdefault(name, 0)
        table[name] += number


def count_shadow(table: dict[str, float], by: str, would: str, seconds: float | None) -> None:
    """Count what a policy in shadow would have done, with the fields of a `Shadowed` event."""
    if would in ("retry", "end"):
        count(table, "retries" if would == "retry" else "timeouts")
        return
    count(table, f"{'waits' if would == 'delay' else 'rejected_by'}.{by}")
    if would == "delay" and seconds is not None:
        count(table, f"waited_for.{by}", seconds)


def shadow_as_dict(table: dict[str, float]) -> dict[str, Any]:
    """Return `retries`, `timeouts`, and by kind of policy `rejected_by`, `waits` and `waited_for` (seconds)."""
    found: dict[str, Any] = {"rejected_by": {}, "retries": 0, "timeouts": 0, "waits": {}, "waited_for": {}}
    for name, number in table.copy().items():
        what, _, by = name.partition(".")
        if by:
            found[what][by] = number
        else:
            found[what] = number
    return found


def flat_shadow(counts: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the entries of a table from what `shadow_as_dict` returned elsewhere."""
    for what, number in counts.items():
        if isinstance(number, dict):
            yield from ((f"{what}.{by}", each) for by, each in number.items())
        elif number:
            yield what, number


def difference(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return by how much counts have grown, table by table."""
    found: dict[str, Any] = {}
    for name, value in now.items():
        if isinstance(value, dict):
            grown = difference(value, before.get(name, {}))
            found[name] = grown if name == "latency" else {each: number for each, number in grown.items() if number}
        else:
            found[name] = value - before.get(name, 0)
    return found
