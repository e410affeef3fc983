"""How long a service asks to wait: Retry-After and its relatives, in the headers of any HTTP library."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from opero.failures.reading import read
from opero.patterns import pattern

Headers = Callable[[str], Any]

RESETS = (
    ("x-ratelimit-reset", "x-ratelimit-remaining"),
    ("ratelimit-reset", "ratelimit-remaining"),
    ("x-rate-limit-reset", "x-rate-limit-remaining"),
    *((f"x-ratelimit-reset-{each}", f"x-ratelimit-remaining-{each}") for each in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{each}-reset", f"anthropic-ratelimit-{each}-remaining")
        for each in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
"""The headers that say when a quota is renewed, each with the one that says what is left of it."""

_DURATION = pattern(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.ASCII)
_LONGEST_TEXT = 100
"""The most characters of a number, duration or date."""
LONGEST = 36500 * 86400.0
"""100 years, the longest time that a policy can have: no clock or date can hold what some servers ask for."""
_EPOCH = 1e9
"""Larger numbers are seconds since the epoch, not seconds from now."""


def headers_of(source: object) -> Headers | None:
    """Return a function that looks up a header by its lower-case name; None if `source` is no mapping of headers."""
    if type(source) is dict:  # the others ignore case themselves
        lowered = {name.lower(): value for name, value in source.items() if isinstance(name, str)}
        return lowered.get
    get = read(source, "get")
    return get if callable(get) else None


def header(headers: Headers | None, name: str) -> str | float | None:
    """Return a header if it is a text or number; that of a mock, for example, is neither."""
    if headers is None:
        return None
    try:
        value = headers(name)
    except Exception:  # noqa: BLE001  # foreign code
        return None
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def sane(seconds: float) -> float | None:
    """Return seconds to wait, at most 100 years; None if infinite, no number, or in the past, as clocks differ."""
    return min(seconds, LONGEST) if 0 <= seconds < math.inf else None


def seconds_in(value: object, now: float | None = None) -> float | None:
    """Return the seconds that a number, "1.5", "6m0s", "20ms", an HTTP date or an ISO date stand for, at most 100
    years; None if invalid.

    Args:
        value: the value of a header or attribute.
        now: the current time in seconds since the epoch, for dates; None reads the clock.
    """
    seconds = _number_in(value, now)
    return None if seconds is None else sane(seconds)


def _number_in(value: object, now: float | None) -> float | None:
    """Return the seconds of a value as they are written; None if it is none."""
    try:
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        if isinstance(value, str) and len(value) > _LONGEST_TEXT:
            return None
        try:
            return float(value)
        except ValueError:
            pass
        written = str(value).strip()
        match = _DURATION.fullmatch(written)
        if match is not None and written:
            units = zip((86400.0, 3600.0, 60.0, 1.0, 0.001), match.groups(), strict=True)
            return sum(unit * float(number) for unit, number in units if number)
        moment = datetime.fromisoformat(written) if written[:4].isdigit() else _http_date(written)
        return moment.timestamp() - (time.time() if now is None else now)
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _http_date(written: str) -> datetime:
    from email.utils import parsedate_to_datetime  # takes as long to import as all of opero.failures

    return parsedate_to_datetime(written)


def asked_wait(headers: Headers | None, now: float | None = None) -> float | None:
    """Return the seconds in `retry-after-ms`, else in `Retry-After`."""
    if headers is None:
        return None
    milliseconds = seconds_in(header(headers, "retry-after-ms"), now)
    if milliseconds is not None:
        return milliseconds / 1000
    return seconds_in(header(headers, "retry-after"), now)


def quota_wait(headers: Headers | None, now: float | None = None) -> float | None:
    """Return the seconds until a quota is renewed, by the headers of `RESETS`.

    Services send these with every response, so they count only if the call was throttled. Quotas of which nothing
    remains decide, the latest of them; if none says so, the soonest of all: the others may not matter to this call.
    """
    if headers is None:
        return None
    spent: list[float] = []
    others: list[float] = []
    for reset, remaining in RESETS:
        wait = reset_in(header(headers, reset), now)
        if wait is not None:
            (spent if is_spent(headers, remaining) else others).append(wait)
    return max(spent) if spent else min(others, default=None)


def reset_in(value: object, now: float | None = None) -> float | None:
    """Return the seconds until a quota is renewed: from now, or from a moment in seconds or milliseconds since the
    epoch; None if invalid."""
    seconds = None if value is None else _number_in(value, now)
    if seconds is None or not 0 <= seconds < math.inf:
        return None
    if seconds >= _EPOCH:
        moment = seconds / 1000 if seconds >= 1000 * _EPOCH else seconds
        seconds = moment - (time.time() if now is None else now)
    return sane(seconds)


def is_spent(headers: Headers | None, remaining: str = "x-ratelimit-remaining") -> bool:
    """Return whether a header says that nothing remains of a quota."""
    return str(header(headers, remaining)).strip() == "0"
