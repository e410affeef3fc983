"""What responses say about the quota of their caller: how much is left, and when it is renewed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from opero.failures.waits import reset_in
from opero.patterns import pattern

LOW = 0.1
"""The share of a quota below which calls are slowed down, so that it is not used up before it is renewed."""

_MOST_NAMES = 500
_MOST_TEXT = 1000
_MOST_DIGITS = 15
_TOKEN = pattern(r'"[^"]*"|[^",;=\s]+|[,;=]')
_NUMBER = pattern(r" *(\d{1,15}(?:\.\d{0,6})?) *(?:[,;].*)?", re.ASCII)


def _family(names: str, *, is_refilled: bool = False) -> tuple[str, str, str, bool]:
    return names.format("limit"), names.format("remaining"), names.format("reset"), is_refilled


FAMILIES = (
    # Quotas that are renewed as a whole at a moment
    *(_family(each) for each in ("ratelimit-{}", "x-ratelimit-{}", "x-rate-limit-{}")),
    # Quotas that fill up all the time, of which reset says when they are full
    *(_family(f"x-ratelimit-{{}}-{each}", is_refilled=True) for each in ("requests", "tokens")),
    *(
        _family(f"anthropic-ratelimit-{each}-{{}}", is_refilled=True)
        for each in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
"""Headers that tell of a quota: its limit, what remains, when it is renewed; and whether it fills up all the time."""


class Quota(NamedTuple):
    """What is left of a quota.

    Attributes:
        remaining: how much is left.
        seconds: until it is renewed; where it fills up all the time, until it is full.
        limit: how much there is in all; None if that is unknown.
        is_refilled: it fills up all the time.
    """

    remaining: float
    seconds: float
    limit: float | None = None
    is_refilled: bool = False

    @property
    def pause(self) -> float:
        """Seconds in which no call is accepted."""
        return self.seconds if self.remaining <= 0 and not self._fills_up else 0.0

    @property
    def delay(self) -> float:
        """Seconds until the next call, so that the quota is not used up; 0 while there is enough."""
        if self.limit is None or self.remaining >= LOW * self.limit:
            return 0.0
        if self._fills_up:  # until so much is there again
            return self.seconds * (LOW * self.limit - self.remaining) / (self.limit - self.remaining)
        return self.seconds / self.remaining if self.remaining > 0 else 0.0

    @property
    def _fills_up(self) -> bool:
        return self.is_refilled and self.limit is not None


def asked_of_all(source: object, now: float | None = None) -> tuple[float, float]:
    """Return for how many seconds a response accepts no further call, and how far away the next one should be; 0 where
    it does not say.

    Args:
        source: its headers.
        now: the current time in seconds since the epoch, for headers with a date; None reads the clock.
    """
    pause = delay = 0.0
    for quota in quotas_of(source, now):
        pause, delay = max(pause, quota.pause), max(delay, quota.delay)
    return pause, delay


def quotas_of(source: object, now: float | None = None) -> list[Quota]:
    """Return the quotas of which the headers of a response tell, by `RateLimit` and `FAMILIES`."""
    headers = _about_quotas(source)
    if not headers:
        return []
    found: list[Quota] = []
    if "ratelimit" in headers:
        found += _structured(headers["ratelimit"], headers.get("ratelimit-policy", ""))
    for limit, remaining, reset, is_refilled in FAMILIES:
        if reset in headers and remaining in headers:
            left = _number(headers[remaining])
            seconds = reset_in(headers[reset], time.time() if now is None else now)
            if left is not None and seconds is not None:
                found.append(Quota(left, seconds, _number(headers.get(limit)), is_refilled))
    return found


def _about_quotas(source: object) -> dict[str, str]:
    """Return the headers that may be about quotas, by their names in lower case, in one pass: a single look-up takes as
    long in some libraries."""
    items = getattr(source, "items", None)
    if not callable(items):
        return {}
    found: dict[str, str] = {}
    for name, value in islice(items(), _MOST_NAMES):
        if isinstance(name, str) and isinstance(value, str | int | float):
            lowered = name.lower()
            if "limit" in lowered and "rate" in lowered:
                found[lowered] = f"{found[lowered]}, {value}" if lowered in found else str(value)
    return found


def _number(value: str | None) -> float | None:
    """Return the number with which a value begins, as "100, 100;w=60" does."""
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:  # as nearly all are
        return float(value)
    match = _NUMBER.fullmatch(value[:_MOST_TEXT])
    return float(match[1]) if match else None


def _structured(text: str, policy: str) -> Iterator[Quota]:
    """Read `RateLimit: "name";r=5;t=30` with `RateLimit-Policy: "name";q=100;w=60`, and the older form
    `RateLimit: limit=100, remaining=5, reset=30`."""
    limits = {name: parameters.get("q") for name, parameters in _items(policy)}
    older: dict[str, float] = {}
    for name, parameters in _items(text):
        remaining, seconds = parameters.get("r"), parameters.get("t")
        if remaining is not None and seconds is not None:
            yield Quota(remaining, seconds, limits.get(name))
        older.update((key, parameters[key]) for key in ("limit", "remaining", "reset") if key in parameters)
    if "remaining" in older and "reset" in older:
        yield Quota(older["remaining"], older["reset"], older.get("limit"))


def _items(text: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Read the items of a structured field, each with its parameters that are numbers; `key=5` is an item as well."""
    tokens = _TOKEN.findall(text) if len(text) <= _MOST_TEXT else []
    name: str | None = None
    parameters: dict[str, float] = {}
    for position, token in enumerate(tokens):
        if token == ",":
            yield name or "", parameters
            name, parameters = None, {}
        elif token == "=" and 0 < position < len(tokens) - 1:
            value = _number(tokens[position + 1])
            if value is not None:
                parameters[tokens[position - 1].lower()] = value
        elif name is None and token not in (";", "="):
            name = token
    yield name or "", parameters
