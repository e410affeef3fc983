"""The index of a journal: for each item its digest, the state of its last record, and where that is in the file."""

from __future__ import annotations

import os
from array import array
from hashlib import blake2b
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from opero.cache.content import freeze
from opero.cache.digest import digest
from opero.dataclass import dataclass
from opero.errors import ConfigError
from opero.parallel.journal.records import MOST_ITEMS

if TYPE_CHECKING:
    from pathlib import Path

    from opero.runtime.hosts import Outcome

DONE = 1
"""The last record of the item is a result."""
FAILED = 2
"""The last record of the item is a failure."""
RECORDED = DONE | FAILED
CHECKED = 4
"""The digest is that of an item of this run."""
AT_ONCE = 1024
"""Items for which memory is allocated together."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a journal records of some items. Those in neither part are left out of this run.

    Attributes:
        outcomes: index → outcome of the items that need no call, in their order.
        to_run: the indices of the items that need one, in their order.
    """

    outcomes: dict[int, Outcome]
    to_run: list[int]


class JournalIndex:
    """What is known of each item: 17 bytes, and nothing of its value.

    Args:
        path: of the journal, for messages.

    Attributes:
        offsets, digests, states: by the items' indices.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets = array("q")
        self.digests = array("Q")
        self.states = bytearray()

    def make_room(self, index: int) -> None:
        """Allocate memory up to an item.

        Raises:
            ConfigError: a journal cannot hold that many items.
        """
        if index >= MOST_ITEMS:
            raise ConfigError(
                f"the journal {self.path} has no room for item {index}: map at most {MOST_ITEMS:,} items with one"
            )
        if index >= len(self.states):
            more = index + AT_ONCE - len(self.states)
            self.offsets.frombytes(bytes(8 * more))
            self.digests.frombytes(bytes(8 * more))
            self.states.extend(bytes(more))

    def digest(self, index: int, item: Any) -> int:
        """64 bits that are the same for the same item in every process.

        Raises:
            ConfigError: the item has no digest.
        """
        kind = type(item)
        try:
            if kind is int or kind is str:  # in a third of the time
                text = b"i%d" % item if kind is int else b"s" + item.encode("utf-8", "surrogatepass")
                return int.from_bytes(blake2b(text, digest_size=8).digest())
            if isinstance(item, PurePath):  # its pickle depends on how it was built, and on the version of Python
                item = "path", os.fspath(item)
            return int(digest(freeze(item))[:16], 16)
        except Exception as error:
            raise ConfigError(
                f"the journal {self.path} cannot distinguish item {index}, a {kind.__qualname__}, from others: give "
                "its class an `__opero_key__` (a value, or a method that returns one), make it a frozen dataclass, or "
                "map what names it, such as its path or id"
            ) from error
