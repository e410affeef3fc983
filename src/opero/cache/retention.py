"""A cache policy's decisions: which outcomes are stored, for how long and with which tags."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

from opero.cache.entry import Entry
from opero.cache.outage import ThrottledFailure
from opero.cache.popularity import Popularity
from opero.errors import ConfigError, describe, message_of, nearest
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.types import parse_duration
from opero.runtime.functions import is_async_function
from opero.runtime.hosts import Outcome

if TYPE_CHECKING:
    from opero.cache.keys import KeyMaker
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock

SINGLE_USE = (Awaitable, Iterator, AsyncIterator)
"""Types of results that can be consumed only once, and so cannot be cached."""
REUSABLE = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict, set, frozenset})
"""Types that are none of these, so that the usual results need no slow check."""


class Retention:
    """Makes the entries of one function.

    Args:
        policy: the function's cache policy.
        clock: the source of randomness, and of the time for counting requests.
        key: makes the function's keys.
        name: the region's name, for messages.
        keeps_error: returns whether an exception is stored. Default: none is.

    Attributes:
        now: returns the current time by the clock of the store.
        not_stored: reports results that could not be stored.
        popularity: counts requests, if the time to live depends on them; otherwise None.

    Raises:
        ConfigError: a tag names a parameter that the function does not have.
    """

    def __init__(
        self,
        policy: CachePolicy,
        clock: Clock,
        key: KeyMaker,
        name: str,
        keeps_error: Callable[[Exception], bool] | None = None,
    ) -> None:
        self.policy = policy
        self.keeps_error = keeps_error or (lambda _: False)
        self.clock = clock
        self.key = key
        self.name = name
        # Async ones are awaited around the function.
        self.awaits_ttl = is_async_function(policy.ttl)
        self.cache_if = None if is_async_function(policy.cache_if) else policy.cache_if
        self.now: Callable[[], float] = clock.monotonic
        self.not_stored = ThrottledFailure("not_stored", name, clock)
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

    def entry(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...], ttl: float | None = None) -> Entry | None:
        """Return the entry to store for an outcome, or None to store nothing.

        If a function of the policy fails, that is reported and nothing is stored; the call's outcome is not affected.

        Args:
            key: its key.
            outcome: the result or exception.
            tags: its tags.
            ttl: what an async `ttl` has said.
        """
        try:
            return self._entry(key, outcome, tags, ttl)
        except Exception as error:  # noqa: BLE001  # a user's function may raise anything
            self.not_stored.report(f"result not cached: {message_of(error)}", error)
            return None

    def _entry(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...], asked: float | None) -> Entry | None:
        policy, error = self.policy, outcome.error
        if error is None:
            if type(outcome.value) not in REUSABLE and isinstance(outcome.value, SINGLE_USE):
                raise ValueError(
                    f"a {type(outcome.value).__name__} can be consumed only once; return a list, or apply the policy "
                    "to the async function itself"
                )
            if self.cache_if is not None and not self._call("cache_if", self.cache_if, outcome.value):
                return None
        elif not self.keeps_error(error):
            return None
        ttl = policy.error_ttl if error is not None and policy.error_ttl is not None else asked
        if ttl is None:
            ttl = self._ttl(key)
        now = self.now()
        if ttl is None:
            value = outcome.value if error is None else copied(error)
            return Entry(value, is_error=error is not None, tags=tags, written=now)
        if ttl == 0:
            return None
        if policy.ttl_jitter:
            ttl *= 1 - self.clock.random.random() * policy.ttl_jitter
        expires = now + ttl
        if error is not None:
            return Entry(copied(error), expires, expires, expires, is_error=True, tags=tags, written=now)
        early = min(policy.early_refresh or 0.0, ttl / 2 if callable(policy.ttl) else ttl)
        return Entry(
            outcome.value, expires - early, expires, expires + (policy.stale_ttl or 0.0), tags=tags, written=now
        )

    def _ttl(self, key: Hashable) -> float | None:
        ttl = self.policy.ttl
        if isinstance(ttl, AdaptiveTTL):
            assert self.popularity is not None
            return ttl.seconds(self.popularity.of(key))
        if not callable(ttl):
            return ttl  # type: ignore[no-any-return]
        if self.awaits_ttl:
            raise ValueError("its cache_ttl function is async, and only calls of the function await it")
        return time_to_live(self._call("cache_ttl", ttl))

    def _call(self, option: str, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise ValueError(f"the {option} function raised {describe(error)}") from error


def time_to_live(value: Any) -> float:
    """Return what a `ttl` function has returned as seconds.

    Raises:
        ValueError: it is no duration, or negative.
    """
    seconds = parse_duration(value)
    if seconds < 0:
        raise ValueError(f"the cache_ttl function returned {seconds:g}: a time to live must be ≥ 0")
    return seconds


def tag_fields(tag: str) -> list[str]:
    """Return the names of the parameters that a tag refers to."""
    return [name.partition(".")[0].partition("[")[0] for _, name, _, _ in Formatter().parse(tag) if name is not None]


def shared(outcome: Outcome) -> Outcome:
    """Return an outcome of which another caller gets the original.

    Exceptions are copied, as each raise extends the traceback; lists, dictionaries and sets, as callers modify them.
    """
    error = outcome.error
    if error is None:
        is_mutable = type(outcome.value) in (list, dict, set)
        return Outcome(_deep_copy(outcome.value)) if is_mutable else outcome
    duplicate = copied(error)
    if duplicate is not error:
        duplicate.__traceback__, duplicate.__cause__, duplicate.__context__, duplicate.__suppress_context__ = (
            error.__traceback__,
            error.__cause__,
            error.__context__,
            error.__suppress_context__,
        )
    return Outcome(error=duplicate)


def _deep_copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001  # it holds what cannot be copied
        return value


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
