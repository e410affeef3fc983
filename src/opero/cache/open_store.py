"""Opens the store that a cache policy asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opero.cache.lru import Memory, purge_in_background
from opero.cache.stores import MemoryStore
from opero.runtime.clock import SYSTEM
from opero.runtime.functions import full_name

if TYPE_CHECKING:
    from opero.cache.identity import Identity
    from opero.cache.shared_store import SharedStore
    from opero.policies.cache import CachePolicy
    from opero.runtime.clock import Clock


def open_store(
    policy: CachePolicy, clock: Clock, function: Callable[..., Any], before: Identity | None = None
) -> MemoryStore | SharedStore:
    """Open the store that a policy asks for.

    Args:
        policy: the cache policy.
        clock: the source of time.
        function: the function whose results it holds.
        before: the identity of the function in the store that this one may replace.

    Raises:
        ConfigError: the backend is unknown, or cannot be opened with these options.
        MissingExtraError: the backend needs an extra that is not installed.
    """
    if not policy.is_in_memory:
        # dogpile.cache, SQLite and what writes values would double the time of a first call.
        from opero.cache.open_shared import open_shared

        return open_shared(policy, clock, function, before)
    codec = None
    if policy.serializer is not None:
        from opero.cache.open_shared import codec_of
        from opero.cache.settings import CacheSettings

        codec = codec_of(policy, CacheSettings.read(), "memory", f"{policy.namespace}:{full_name(function)}", function)
    memory = Memory(policy.max_size, clock.monotonic)
    if clock is SYSTEM:
        purge_in_background(memory)
    return MemoryStore(memory, clock, codec)
