"""What responses say about the quota of their caller: how much is left, and when it is renewed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from opero.failures.waits import header, headers_of, reset_in
from opero.patterns import pattern

LOW = 0.1
"""The share of a quota below which calls are slowed down, so that it is not used up before it is renewed."""

_MOST_NAMES = 500
_MOST_TEXT = 1000
_TOKEN = pattern(r'"[^"]*"|[^",;=\s]+|[,;=]')
_NUMBER = pattern(r" *(\d{1,15}(?:\.\d{0,6})?) *(?:[,;].*)?", re.ASCII)

WINDOWS = ("ratelimit-{}", "x-ratelimit-{}", "x-rate-limit-{}")
"""Headers of quotas that are renewed as a whole at a moment: `{}` is limit, remaining or reset."""
REFILLED = (
    *(f"x-ratelimit-{{}}-{each}" for each in ("requests", "tokens")),
    *(f"anthropic-ratelimit-{each}-{{}}" for each in ("requests", "tokens", "input-tokens", "output-tokens")),
)
"""Headers of quotas that fill up all the time; `reset` says when they are full."""


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
    """Return the quotas of which the headers of a response tell, by `RateLimit` and the families of names above."""
    names = _names(source)
    if not names:
        return []
    found: list[Quota] = []
    headers = headers_of(source)
    if "ratelimit" in names:
        found += _structured(str(header(headers, "ratelimit")), str(header(headers, "ratelimit-policy")))
    for family, is_refilled in (*((each, False) for each in WINDOWS), *((each, True) for each in REFILLED)):
        reset = family.format("reset")
        if reset in names and family.format("remaining") in names:
            remaining = _number(header(headers, family.format("remaining")))
            seconds = reset_in(header(headers, reset), time.time() if now is None else now)
            if remaining is not None and seconds is not None:
                limit = _number(header(headers, family.format("limit")))
                found.append(Quota(remaining, seconds, limit, is_refilled))
    return found


def _names(source: object) -> set[str]:
    """Return the names of headers that may be about quotas, in lower case."""
    if not hasattr(source, "keys"):
        return set()
    found = set()
    for name in islice(source, _MOST_NAMES):  # type: ignore[call-overload]
        if isinstance(name, str):
            lowered = name.lower()
            if "limit" in lowered and "rate" in lowered:
                found.add(lowered)
    return found


def _number(value: object) -> float | None:
    """Return the number with which a value begins, as "100, 100;w=60" does."""
    if isinstance(value, int | float):
        return float(value) if value >= 0 else None
    match = _NUMBER.fullmatch(value[:_MOST_TEXT]) if isinstance(value, str) else None
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
