"""The memory backend, as dogpile.cache uses it."""

from __future__ import annotations

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

from opero.cache.memory import MemoryBackend


def test_it_is_a_dogpile_backend_by_name() -> None:
    region = make_region().configure("opero.memory", arguments={"max_size": 2})
    region.set_multi({"a": 1, "b": 2})
    assert region.get_multi(["a", "b", "c"]) == [1, 2, NO_VALUE]
    region.delete_multi(["a"])
    assert region.get("a") is NO_VALUE


def test_it_keeps_the_most_recently_used_and_counts_what_it_evicts() -> None:
    backend = MemoryBackend({"max_size": 2})
    backend.set("a", 1)
    backend.set("b", 2)
    backend.get("a")
    backend.set("c", 3)
    assert [backend.get(key) for key in "abc"] == [1, NO_VALUE, 3]
    assert (len(backend), backend.evictions) == (2, 1)
    backend.clear()
    assert len(backend) == 0
