"""What becomes of state when a policy is replaced by another: a reload, or `Binding.swap`.

The new policy's executor takes over from the old one's. From then on they are two views of one state: calls under way
finish on the old one, by the old policy's decisions, and what they report counts for both. Functions have their state
from the same owner as before, or else begin anew: a profile's, or their own.

    circuit_breaker        whatever changes, the state and since when, failures in a row, and probes are kept
      consecutive_failures,  what was counted is judged by the new number at the next result
      failure_rate, slow_rate, min_calls
      window               calls → calls: the latest that fit; time → time: what is within; else begins anew
      slow_call            from now on: calls that were counted stay slow or not
      open_for             an open circuit stays open for the new time, from when it opened
      half_open_calls      probes that have begun or passed count
      ignore               from now on
    rate_limit             whatever changes, the moment of the next permit is kept, and permits that are promised
      rate                 from that moment on; permits saved up stay as many
      burst                permits saved up stay, as many as the new burst holds; more are saved at the rate
      cost, max_wait       from now on
    bulkhead               whatever changes, running calls hold their places, and who queues keeps his turn
      max_concurrent       smaller: nobody enters until enough have left; greater: the queue is served at once
      max_wait             from now on: who queues keeps his patience
    cache                  what is remembered, and computations under way, stay where the place is the same
      backend, namespace,  another place, which in memory begins empty
      key, url, cache_dir, arguments
      serializer, secret   in memory another place; in stores, entries that the new one cannot read are not there
      ttl, stale_ttl,      from now on: each result keeps the times it was stored with
      early_refresh, ttl_jitter, error_ttl
      cache_if             from now on
      cache_errors         from now on; off: exceptions that are remembered are not raised any more
      tags                 from now on; in stores, results stored with other tags are not there
      max_size             the least recently used go at once, down to the new size
      store_timeout,       from now on
      lock_timeout, allow_unsigned_pickle
    scope                  another owner: begins anew
    enabled                off, or the policy removed: the state is gone

A policy that is equal to the old one keeps its very executor.
"""

from __future__ import annotations

import os
import threading

__all__ = ["moving"]


class _Moving:
    """Held while state changes its executor, or moves to a file: one at a time in a process. Nothing waits under it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


moving = _Moving()

if hasattr(os, "register_at_fork"):  # a thread of the parent may hold it
    os.register_at_fork(after_in_child=moving.__init__)  # type: ignore[misc]
