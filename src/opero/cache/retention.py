"""A cache policy's decisions: which outcomes are stored, for how long and with which tags."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Iterator
from string import Formatter
from typing import TYPE_CHECKING, Any

from opero.cache.entry import Entry
from opero.cache.outage import ThrottledEvent
from opero.cache.popularity import Popularity
from opero.errors import ConfigError, RejectedError, describe, nearest
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.types import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from opero.cache.keys import KeyMaker
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Outcome

__all__ = ["Retention", "copied"]


SINGLE_USE = (Awaitable, Iterator, AsyncIterator)
"""Types of results that can be consumed only once, and so cannot be cached."""


class Retention:
    """Makes the entries of one function.

    Args:
        policy: the function's cache policy.
        clock: the source of randomness, and of the time for counting requests.
        key: makes the function's keys.
        name: the region's name, for messages.

    Attributes:
        now: returns the current time by the clock of the store.
        not_stored: reports results that could not be stored.
        popularity: counts requests, if the time to live depends on them; otherwise None.

    Raises:
        ConfigError: a tag names a parameter that the function does not have.
    """

    def __init__(self, policy: CachePolicy, clock: Clock, key: KeyMaker, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.key = key
        self.name = name
        self.now: Callable[[], float] = clock.monotonic
        self.not_stored = ThrottledEvent("cache_not_stored", name, clock)
        self.popularity: Popularity | None = None
        if isinstance(policy.ttl, AdaptiveTTL):
            self.popularity = Popularity(policy.ttl.window, policy.max_size, clock.monotonic)
        for tag in policy.tags:
            for field in tag_fields(tag):
                if key.parameters and field not in key.parameters:
                    raise ConfigError(
                        f"{name}: tag {tag!r} refers to {field!r}, which is not a parameter of the function"
                        f"{nearest(field, key.parameters)}"
                    )

    def tags(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the tags of the result of a call with these arguments."""
        if not self.policy.tags:
            return ()
        arguments = self.key.arguments(args, kwargs)
        return tuple(tag.format(**arguments) for tag in self.policy.tags)

    def entry(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...]) -> Entry | None:
        """Return the entry to store for an outcome, or None to store nothing.

        If a function of the policy fails, that is reported and nothing is stored; the call's outcome is not affected.
        """
        try:
            return self._entry(key, outcome, tags)
        except Exception as error:  # noqa: BLE001  # a user's function may raise anything
            self.not_stored.report(f"result not cached: {error}", error)
            return None

    def _entry(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...]) -> Entry | None:
        policy, error = self.policy, outcome.error
        if error is None:
            if isinstance(outcome.value, SINGLE_USE):
                raise ValueError(
                    f"a {type(outcome.value).__name__} can be consumed only once; return a list, or apply the policy "
                    "to the async function itself"
                )
            if policy.cache_if is not None and not self._call("cache_if", policy.cache_if, outcome.value):
                return None
        elif not policy.cache_errors or isinstance(error, RejectedError):
            return None
        ttl = self._ttl(key)
        if error is not None and policy.error_ttl is not None:
            ttl = policy.error_ttl
        if ttl is None:
            return Entry(outcome.value if error is None else copied(error), is_error=error is not None, tags=tags)
        if ttl == 0:
            return None
        if policy.ttl_jitter:
            ttl *= 1 - self.clock.random.random() * policy.ttl_jitter
        now = self.now()
        expires = now + ttl
        if error is not None:
            return Entry(copied(error), expires, expires, expires, is_error=True, tags=tags)
        early = min(policy.early_refresh or 0.0, ttl / 2 if callable(policy.ttl) else ttl)
        return Entry(outcome.value, expires - early, expires, expires + (policy.stale_ttl or 0.0), tags=tags)

    def _ttl(self, key: Hashable) -> float | None:
        ttl = self.policy.ttl
        if isinstance(ttl, AdaptiveTTL):
            assert self.popularity is not None
            return ttl.seconds(self.popularity.of(key))
        if not callable(ttl):
            return ttl  # type: ignore[no-any-return]
        seconds = parse_duration(self._call("cache_ttl", ttl))
        if seconds < 0:
            raise ValueError(f"the cache_ttl function returned {seconds:g}: a time to live must be ≥ 0")
        return seconds

    def _call(self, option: str, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise ValueError(f"the {option} function raised {describe(error)}") from error


def tag_fields(tag: str) -> list[str]:
    """Return the names of the parameters that a tag refers to."""
    return [name.partition(".")[0].partition("[")[0] for _, name, _, _ in Formatter().parse(tag) if name is not None]


def copied(error: Exception) -> Exception:
    """Return a copy of an exception without its traceback, or the exception itself if it cannot be copied.

    A cached exception must not be raised itself: each raise would extend its traceback, which keeps frames alive.
    """
    try:
        duplicate = copy.copy(error)
    except Exception:  # noqa: BLE001  # a user's exception may do anything
        return error
    is_copy = type(duplicate) is type(error) and duplicate is not error
    return duplicate.with_traceback(None) if is_copy else error
