"""JSON in environment variables."""

from __future__ import annotations

import re
from typing import Any

from opero.errors import message_of
from opero.patterns import pattern
from opero.policies.quantities import quoted

DEEPEST = 50
"""The most levels of nesting, as in files."""
_STRING = pattern(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
MOST_DIGITS = 3_900
"""The most digits of an integer, as in files."""


class NotJSONError(ValueError):
    """Some text is not JSON."""


def parse_json(text: str) -> Any:
    """Parse JSON strictly.

    Raises:
        NotJSONError: it is not JSON.
        ValueError: it is nested too deeply, has too large a number, or a mapping has the same key twice; `json.loads`
            would use the last one.
    """
    depth = 0
    for bracket in re.findall(r"[][{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"is nested deeper than {DEEPEST} levels")
    import json  # which only variables need

    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise NotJSONError(message_of(error)) from None


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has more than {MOST_DIGITS:,} digits; write it as text")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {quoted(key)} in a mapping; keep one of them")
        found[key] = value
    return found
