"""The parts of a cache: keys, entries, stores and single-flight.

Importing this package registers what knows the classes of values.
"""

from opero.cache.arrays import freezer_of_data
from opero.cache.clearing import clear_cache
from opero.cache.content import ways
from opero.cache.records import freezer_of

__all__ = ["clear_cache"]

ways[:] = freezer_of_data, freezer_of
