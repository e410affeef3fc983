"""The parts of a cache: keys, entries, stores and single-flight.

Importing this package registers opero's backends with dogpile.cache.
"""

from dogpile.cache import register_backend

from opero.cache.clearing import clear_cache

__all__ = ["clear_cache"]

for name, module, backend in (
    ("opero.memory", "opero.cache.memory", "MemoryBackend"),
    ("opero.disk", "opero.cache.disk", "DiskBackend"),
    ("opero.redis", "opero.cache.redis", "RedisBackend"),
):
    register_backend(name, module, backend)  # type: ignore[no-untyped-call]
