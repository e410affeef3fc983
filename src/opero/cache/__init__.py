"""The parts of a cache: keys, entries, stores and single-flight.

Importing this package registers opero's backends with dogpile.cache, and what knows the classes of values.
"""

from dogpile.cache import register_backend

from opero.cache.arrays import freezer_of_data
from opero.cache.clearing import clear_cache
from opero.cache.content import ways
from opero.cache.records import freezer_of

__all__ = ["clear_cache"]

ways[:] = freezer_of_data, freezer_of

for name, module, backend in (
    ("opero.memory", "opero.cache.memory", "MemoryBackend"),
    ("opero.disk", "opero.cache.disk", "DiskBackend"),
    ("opero.redis", "opero.cache.redis", "RedisBackend"),
):
    register_backend(name, module, backend)  # type: ignore[no-untyped-call]
