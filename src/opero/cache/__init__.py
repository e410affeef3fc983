"""What a cache is made of: keys, and opero's own backends, which dogpile.cache loads by these names."""

from dogpile.cache import register_backend

register_backend("opero.memory", "opero.cache.memory", "MemoryBackend")  # type: ignore[no-untyped-call]
