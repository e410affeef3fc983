"""What the headers of responses say of quotas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.failures.quotas import Quota, asked_of_all, quotas_of

NOW = 1_000_000_000.0  # 2001-09-09T01:46:40Z
OPENAI = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-limit-tokens": "30000",
    "x-ratelimit-remaining-tokens": "1500",
    "x-ratelimit-reset-tokens": "57s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "0",
    "anthropic-ratelimit-requests-reset": "2001-09-09T01:47:40Z",
}


@pytest.mark.parametrize(
    ("headers", "quotas"),
    [
        ({"RateLimit": '"default";r=50;t=30'}, [Quota(50, 30)]),
        ({"RateLimit": '"a, b";r=50;t=30', "RateLimit-Policy": '"a, b";q=100;w=60'}, [Quota(50, 30, 100)]),
        (
            {"ratelimit": '"burst";r=3;t=1, "day";r=0;t=8000', "ratelimit-policy": '"day";q=500;w=86400,"burst";q=10'},
            [Quota(3, 1, 10), Quota(0, 8000, 500)],
        ),
        ({"RateLimit": "default;r=50;t=30"}, [Quota(50, 30)]),
        ({"RateLimit": "limit=100, remaining=50, reset=5"}, [Quota(50, 5, 100)]),
        ({"RateLimit": "r=5;t=3"}, [Quota(5, 3)]),
        (
            {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "7", "RateLimit-Reset": "20"},
            [Quota(7, 20, 100)],
        ),
        (
            {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW) + 60)},
            [Quota(0, 60, 5000)],
        ),
        ({"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "1000000060000"}, [Quota(1, 60)]),
        (OPENAI, [Quota(499, 0.12, 500, True), Quota(1500, 57, 30000, True)]),
        (ANTHROPIC, [Quota(0, 60, 50, True)]),
    ],
)
def test_quotas_are_read(headers: dict[str, str], quotas: list[Quota]) -> None:
    assert quotas_of(headers, NOW) == quotas


@pytest.mark.parametrize(
    "headers",
    [
        None,
        5,
        "text",
        {},
        {"RateLimit": ""},
        {"RateLimit": '"default"'},
        {"RateLimit": '"default";r=x;t=y'},
        {"RateLimit": '"' * 1000},
        {"RateLimit": '"a";r=0;t=5' * 200},
        {"X-RateLimit-Remaining": "0"},
        {"X-RateLimit-Remaining": "-1", "X-RateLimit-Reset": "5"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "-5"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1e400"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "nan"},
        {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "999999999"},
        {5: "x", b"X-RateLimit-Reset": b"5"},
    ],
)
def test_nonsense_says_nothing(headers: Any) -> None:
    assert asked_of_all(headers, NOW)[0] in (0.0, 999999999.0)


@pytest.mark.parametrize(
    ("quota", "pause", "delay"),
    [
        (Quota(0, 30), 30, 0),
        (Quota(0, 30, 100), 30, 0),
        (Quota(5, 30, 100), 0, 6),
        (Quota(10, 30, 100), 0, 0),
        (Quota(5, 30), 0, 0),
        (Quota(0, 60, 50, True), 0, 6),  # until a tenth is there again
        (Quota(0, 60, None, True), 60, 0),
        (Quota(1500, 57, 30000, True), 0, 3),
        (Quota(499, 0.12, 500, True), 0, 0),
    ],
)
def test_what_is_left_decides_how_long_to_wait(quota: Quota, pause: float, delay: float) -> None:
    assert (quota.pause, quota.delay) == pytest.approx((pause, delay))


VALUES = st.text(alphabet='0123456789.,;="rtqwab -+eEsm', max_size=60) | st.integers() | st.floats() | st.none()
NAMES = st.sampled_from(
    [
        *("RateLimit", "RateLimit-Policy", "RateLimit-Reset", "RateLimit-Remaining", "X-RateLimit-Limit"),
        *("X-RateLimit-Reset", "X-RateLimit-Remaining", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"),
    ]
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_headers_give_finite_times(headers: dict[str, Any]) -> None:
    pause, delay = asked_of_all(headers, NOW)
    assert 0 <= pause < 4e9
    assert 0 <= delay < 1e25


@pytest.mark.parametrize("text", ['"', "a", ";", "=", ",", "r=0;t=1,", '"a";r=1;t=2,'])
def test_long_headers_are_not_read(text: str) -> None:
    long = text * 100_000
    assert quotas_of({"RateLimit": long, "RateLimit-Policy": long}, NOW) == []
