"""Times, numbers, lists and names in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opero.policies.names import dotted_name
from opero.policies.quantities import format_duration

UNITS = {"m": "min", "h": "h", "d": "d"}


def seconds(value: float) -> str:
    """Return a time in seconds, and in a larger unit if it is a whole number of these."""
    text = f"{value:,.3f}".rstrip("0").rstrip(".") if value < 1000 else f"{value:,.0f}"
    if value > 0 and text == "0":
        text = f"{value:.2g}"
    larger = format_duration(value) if value >= 120 else ""
    unit = UNITS.get(larger[-1:])
    return f"{text} s" if unit is None else f"{text} s ({larger[:-1]} {unit})"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Return words as a list: "a, b and c"."""
    *most, end = words
    return f"{', '.join(most)} {last} {end}" if most else end


def times(count: int) -> str:
    """Return how often: "once", "5 times"."""
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def number(count: int, noun: str) -> str:
    """Return a number of things: "1 attempt", "2 attempts"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def name_of(value: Any) -> str:
    """Return the import path of a function or class."""
    try:
        return dotted_name(value)
    except ValueError:
        return str(getattr(value, "__name__", type(value).__name__))
