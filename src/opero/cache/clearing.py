"""Forgetting results over many functions at once, and what a cache tells of itself."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from opero.executors.cache import CacheExecutor

__all__ = ["clear_cache", "forgo", "register"]


_caches: weakref.WeakSet[CacheExecutor] = weakref.WeakSet()
_lock = threading.Lock()


def register(cache: CacheExecutor) -> None:
    """Have `clear_cache` reach a cache for as long as it lives."""
    with _lock:
        _caches.add(cache)


def forgo(cache: CacheExecutor) -> None:
    """Leave a cache to another that has taken over from it."""
    with _lock:
        _caches.discard(cache)


def clear_cache(namespace: str | None = None, *, tags: str | Collection[str] | None = None) -> int:
    """Forget cached results, over all functions of this process; in stores that are shared, for other processes, too.

    Results that are being computed meanwhile are not kept.

    Args:
        namespace: only what caches of this namespace hold. A shared store is cleared of all its keys, including those
            of functions that this process does not know. Default: every namespace that a function here uses.
        tags: only results of these groups, as `CachePolicy.tags` names them; "user:42" where the tag is
            "user:{user_id}". Default: all results.

    Returns:
        How many functions' caches it reached.
    """
    with _lock:
        reached = [cache for cache in _caches if namespace is None or cache.policy.namespace == namespace]
    names = (tags,) if isinstance(tags, str) else None if tags is None else tuple(tags)
    done: set[tuple[int, str]] = set()
    for cache in reached:
        # A namespace's keys and tags in a shared store need forgetting once, not once a function.
        place = cache.place
        first = place not in done
        done.add(place)
        cache.clear_namespace(names, with_store=first)
    return len(reached)
