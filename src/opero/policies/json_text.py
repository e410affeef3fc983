"""JSON as variables hold it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["TwiceError", "parse_json"]


class TwiceError(ValueError):
    """A key that stands twice in one mapping."""


def parse_json(text: str) -> Any:
    """
    Raises:
        ValueError: it is not JSON.
        TwiceError: a key stands twice in one mapping; `json.loads` takes the last.
    """
    return json.loads(text, object_pairs_hook=_without_doubles)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise TwiceError(f"duplicate key {key!r} in a mapping; keep one of them")
        found[key] = value
    return found
