"""JSON in environment variables."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["DuplicateKeyError", "parse_json"]


class DuplicateKeyError(ValueError):
    """A mapping has the same key twice."""


def parse_json(text: str) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: it is not JSON.
        DuplicateKeyError: a mapping has the same key twice; `json.loads` would use the last one.
    """
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKeyError(f"duplicate key {key!r} in a mapping; keep one of them")
        found[key] = value
    return found
