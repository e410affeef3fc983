"""What of a function's outcomes is kept, for how long, and as part of which groups: a cache policy's decisions."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Iterator
from string import Formatter
from typing import TYPE_CHECKING, Any

from opero.cache.entry import Entry
from opero.cache.outage import Limited
from opero.cache.popularity import Popularity
from opero.errors import ConfigError, RejectedError, nearest
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.types import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from opero.cache.keys import KeyMaker
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Outcome

__all__ = ["Retention", "copied"]


ONCE = (Awaitable, Iterator, AsyncIterator)
"""Results that their first user uses up."""


class Retention:
    """Decides for one function.

    Args:
        policy: its cache policy.
        clock: where chance comes from, and the time by which requests are counted.
        key: makes its keys.
        name: the region's, for messages.

    Attributes:
        now: gives the moment by the clock of the store that entries are for.
        not_stored: where results that could not be kept are told of.
        popularity: counts requests, where the time to live depends on them.

    Raises:
        ConfigError: the policy does not fit the function.
    """

    def __init__(self, policy: CachePolicy, clock: Clock, key: KeyMaker, name: str) -> None:
        self.policy = policy
        self.clock = clock
        self.key = key
        self.name = name
        self.now: Callable[[], float] = clock.monotonic
        self.not_stored = Limited("cache_not_stored", name, clock)
        self.popularity: Popularity | None = None
        if isinstance(policy.ttl, AdaptiveTTL):
            self.popularity = Popularity(policy.ttl.window, policy.max_size, clock.monotonic)
        self._check()

    def _check(self) -> None:
        for tag in self.policy.tags:
            for name in tag_fields(tag):
                if self.key.parameters and name not in self.key.parameters:
                    raise ConfigError(
                        f"{self.name}: tag {tag!r} names {name!r}, which is no parameter of the function"
                        f"{nearest(name, self.key.parameters)}"
                    )

    def tags(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        """The groups that the result of such a call belongs to."""
        if not self.policy.tags:
            return ()
        arguments = self.key.arguments(args, kwargs)
        return tuple(tag.format(**arguments) for tag in self.policy.tags)

    def entry(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...]) -> Entry | None:
        """What to keep of an outcome, and for how long; None for not at all.

        An answer is never lost to a function of the policy that fails.
        """
        try:
            return self._entry(key, outcome, tags)
        except Exception as error:  # noqa: BLE001  # whatever a user's function raises
            self.not_stored.report(f"a result was not kept: {error}", error)
            return None

    def _entry(self, key: Hashable, outcome: Outcome, tags: tuple[str, ...]) -> Entry | None:
        policy, error = self.policy, outcome.error
        if error is None:
            if isinstance(outcome.value, ONCE):
                raise ValueError(
                    f"a {type(outcome.value).__name__} can be gone through or awaited but once; return a list, or bind "
                    "the async function itself"
                )
            if policy.cache_if is not None and not self._asked("cache_if", policy.cache_if, outcome.value):
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
        seconds = parse_duration(self._asked("cache_ttl", ttl))
        if seconds < 0:
            raise ValueError(f"the cache_ttl function gave {seconds:g}, and a time to live is not negative")
        return seconds

    def _asked(self, option: str, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise ValueError(f"the {option} function failed with {type(error).__name__}: {error}") from error


def tag_fields(tag: str) -> list[str]:
    """The parameters that a tag is filled in with."""
    return [name.partition(".")[0].partition("[")[0] for _, name, _, _ in Formatter().parse(tag) if name is not None]


def copied(error: Exception) -> Exception:
    """An exception like this one, without its traceback, which raising adds to and which keeps frames alive.

    The exception itself, where it does not copy.
    """
    try:
        again = copy.copy(error)
    except Exception:  # noqa: BLE001  # whatever a user's exception does
        return error
    return again.with_traceback(None) if type(again) is type(error) and again is not error else error
