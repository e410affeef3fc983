"""Clear the caches of many functions at once."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Protocol

from opero.runtime.forking import RenewedLock


class Clearable(Protocol):
    """A function's cache, as `clear_cache` sees it."""

    @property
    def namespace(self) -> str:
        """The namespace of its keys."""

    @property
    def place(self) -> tuple[int, str]:
        """Identifies its store and namespace, which functions may share."""

    def clear_namespace(self, tags: Collection[str] | None, *, with_store: bool) -> None:
        """Drop results, or those with some tags; `with_store`: in the store as well as those being computed."""


_caches: weakref.WeakSet[Clearable] = weakref.WeakSet()
_lock = RenewedLock()


def register(cache: Clearable) -> None:
    """Let `clear_cache` reach a cache for as long as it lives."""
    with _lock:
        _caches.add(cache)


def forgo(cache: Clearable) -> None:
    """Stop clearing a cache that a successor has replaced."""
    with _lock:
        _caches.discard(cache)


def clear_cache(namespace: str | None = None, *, tags: str | Collection[str] | None = None) -> int:
    """Delete cached results of all functions in this process, and from shared stores for other processes as well.

    Results that are being computed meanwhile are not kept.

    Args:
        namespace: only caches of this namespace. In a shared store all its keys are deleted, including those of
            functions that this process does not know. Default: every namespace that a function of this process uses.
        tags: only results with these tags (see `CachePolicy.tags`): "user:42" where the policy says
            "user:{user_id}". Default: all results.

    Returns:
        The number of function caches that were reached.
    """
    with _lock:
        reached = [cache for cache in _caches if namespace is None or cache.namespace == namespace]
    names = (tags,) if isinstance(tags, str) else None if tags is None else tuple(tags)
    done: set[tuple[int, str]] = set()
    for cache in reached:
        # Keys and tags of a namespace in a shared store are deleted once, not once for each function.
        place = cache.place
        first = place not in done
        done.add(place)
        cache.clear_namespace(names, with_store=first)
    return len(reached)
