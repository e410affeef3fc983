"""Conversion of values to JSON and YAML text."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from opero import AdaptiveTTL
from opero.cli.values import jsonable
from opero.config.plain_values import plain_of, text_of_value


class Colour(Enum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


@dataclass
class Point:
    x: float
    of: Any = None


class Model(BaseModel):
    when: date
    secret: SecretStr = SecretStr("hunter2")


class Wordless:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Broken:
    def isoformat(self) -> str:
        raise RuntimeError("no time")

    def __repr__(self) -> str:
        return "broken"


Pair = namedtuple("Pair", "a b")


CASES: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (float("inf"), "inf"),
    (Colour.RED, "red"),
    (Number.ONE, 1),
    (Point(1.5, Point(2)), {"x": 1.5, "of": {"x": 2, "of": None}}),
    (Model(when=date(2026, 1, 2)), {"when": "2026-01-02", "secret": "**********"}),
    (datetime(2026, 1, 2, tzinfo=timezone.utc), "2026-01-02T00:00:00+00:00"),  # noqa: UP017
    (Decimal("1.50"), "1.50"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (PurePosixPath("/a"), "/a"),
    (b"\xff\x00a", "\\xff\x00a"),
    ((1, {2}), [1, [2]]),
    (Pair(1, 2), [1, 2]),
    (OrderedDict({(1, 2): 1, None: 2, True: 3}), {"(1, 2)": 1, "null": 2, "true": 3}),
    ({1: "a", "1": "b"}, "{1: 'a', '1': 'b'}"),
    ({"in": {None: 1, "null": 2}}, {"in": "{None: 1, 'null': 2}"}),
    (np.float64(1.5), 1.5),
    (np.arange(3), [0, 1, 2]),
    (Point, f"<class '{__name__}.Point'>"),
    (Wordless(), "<Wordless>"),
    (Broken(), "broken"),
    ([Broken(), 1], "[broken, 1]"),
    (2**3000, hex(2**3000)),
]


@pytest.mark.parametrize("place", range(len(CASES)))
def test_values_are_converted_to_json(place: int) -> None:
    value, expected = CASES[place]
    found = jsonable(value)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text()


@given(st.recursive(LEAVES, st.lists) | st.dictionaries(st.text(), LEAVES))
def test_json_values_are_unchanged(value: Any) -> None:
    assert jsonable(value) == value


def test_a_cyclic_value_becomes_its_repr() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    assert jsonable(cycle) == "[[...]]"


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("retry.retries", "8", "8"),
        ("retry.jitter", True, "true"),
        ("cache.ttl", None, "null"),
        ("retry.retry_on", [ValueError, "requests.HTTPError?"], "[ValueError, 'requests.HTTPError?']"),
        ("cache.secret", SecretStr("hunter2"), "***"),
        ("cache.secret", "hunter2", "***"),
        ("cache.url", "redis://:hunter2@host", "***"),
        ("cache.arguments", {"password": "hunter2"}, "{password: '***'}"),
        ("parallel.address", "tls://me:hunter2@host", "tls://***@host"),
        ("fallback.default", {"a": [1, None]}, "{a: [1, null]}"),
        ("fallback.default", {"a": [{"api_key": "hunter2"}]}, "{a: [{api_key: '***'}]}"),
        ("cache.ttl", {"hot": "1h", "cold": 60}, "{hot: 1h, cold: 60}"),
        ("cache.key", print, "print"),
        ("fallback.default", "a\nb", "'a\\nb'"),
        ("fallback.default", "", "''"),
    ],
)
def test_values_are_shown_as_yaml_with_secrets_masked(path: str, value: Any, text: str) -> None:
    assert text_of_value(path, value) == text


def test_models_in_options_are_shown_as_their_fields() -> None:
    assert plain_of("cache.ttl", AdaptiveTTL()) == AdaptiveTTL().model_dump(mode="json")
