"""The cache of a map: read in bulk before anything is sent, and filled as results arrive."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.events import CacheStale
from opero.parallel.engine.settings import spread
from opero.runtime.hosts import Outcome

if TYPE_CHECKING:
    from opero.cache.entry import Entry
    from opero.executors.cache import CacheExecutor
    from opero.parallel.engine.blocks import Block
    from opero.parallel.engine.settings import MapSettings


class CacheStage:
    """Answers items that the cache holds. An item equal to one that is running waits for its result.

    Args:
        cache: of the function.
        settings: of the map.
    """

    def __init__(self, cache: CacheExecutor, settings: MapSettings) -> None:
        if cache.key.is_async or cache.retention.awaits_ttl:
            what = "key" if cache.key.is_async else "ttl"
            raise ConfigError(
                f"{settings.binding.name} cannot be mapped: a map reads and fills the cache itself, and does not await "
                f"the async cache.{what}; use a sync function, or none"
            )
        self.cache = cache
        self.fixed = settings.fixed
        self.stats = settings.binding.stats
        self.check = settings.pipeline.check
        self.is_blocking = cache.is_shared and settings.binding.is_async
        self._keys: dict[Block, list[Any]] = {}
        self._stale: dict[tuple[Block, int], Entry] = {}
        self._under_way: dict[Hashable, list[tuple[Block, int]]] = {}
        self._answered: list[tuple[Block, int]] = []
        self._unwritten: list[tuple[Any, Outcome, tuple[str, ...]]] = []

    @property
    def answers_failures(self) -> bool:
        """Whether it holds stale results that can replace failures."""
        return bool(self._stale)

    def look(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        before, after, kwargs, make = self.fixed.before, self.fixed.after, self.fixed.kwargs or {}, self.cache.key.of
        items, cache = block.items, self.cache
        if self.fixed.spreads:
            positions = self._spread(block, positions)
            keys = [make(*before, *items[position], *after, **kwargs) for position in positions]
        else:
            keys = [make(*before, items[position], *after, **kwargs) for position in positions]
        entries = list(cache.read_many(keys, lambda index: self.fixed.around(items[positions[index]])))
        now = cache.store.now()
        values = [entry.value for entry in entries if entry is not None and entry.until > now]
        if len(values) == len(items):
            block.fill(values)
            self.stats.count_hits(len(values))
            return ()
        held: list[Any] = [None] * len(items)
        missing, hits = [], 0
        for position, key, entry in zip(positions, keys, entries, strict=True):
            held[position] = key
            if entry is not None:
                if entry.until > now:
                    block.put(position, entry.value, failed=False)
                    hits += 1
                    continue
                if cache.serves(entry):
                    if entry.expires > now:
                        self._answer(block, position, cache.outcome(entry))
                        continue
                    self._stale[block, position] = entry
            followers = self._under_way.get(key)
            if followers is not None:
                followers.append((block, position))
                continue
            self._under_way[key] = []
            self.stats.count_miss()
            missing.append(position)
        if block.pending:
            self._keys[block] = held
        self.stats.count_hits(hits)
        return missing

    def _spread(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        """Make tuples of items of `starmap`, which are read for their keys as well; return those that can be spread."""
        good = []
        for position in positions:
            try:
                block.items[position] = tuple(spread(block.items[position]))
            except Exception as error:  # noqa: BLE001  # it costs the item
                block.put(position, error, failed=True)
                self.stats.count_calls(1)
                self.stats.count_error(error)
                self.stats.count_failure(error)
            else:
                good.append(position)
        return good

    def _answer(self, block: Block, position: int, outcome: Outcome) -> None:
        """Answer an item that needs no call of its own."""
        failed = outcome.error is not None
        block.put(position, outcome.error if failed else outcome.value, failed=failed)
        if failed:
            self.stats.count_calls(1)
        else:
            self.stats.count_hits(1)

    def took(self, block: Block, position: int, value: Any, *, failed: bool, keep: bool) -> tuple[Any, bool]:
        old = self._stale.pop((block, position), None)
        if failed and old is not None:
            value, failed, keep = old.value, False, False
            self.stats.failures -= 1
            self.stats.emit(CacheStale)
        outcome = Outcome(error=value) if failed else Outcome(value)
        key = self._keys[block][position]
        if keep and (failed or self.check is None or not self.check.fails(value)):
            tags = self.cache.retention.tags(*self.fixed.around(block.items[position]))
            if self.is_blocking:
                self._unwritten.append((key, outcome, tags))
            else:
                self.cache.keep(key, outcome, tags)
        for other, at in self._under_way.pop(key, ()):
            self._stale.pop((other, at), None)
            self._answer(other, at, outcome)
            self._answered.append((other, at))
        return value, failed

    def followers(self) -> list[tuple[Block, int]]:
        answered, self._answered = self._answered, []
        return answered

    def settle(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for waiting in unwritten:
            self.cache.keep(*waiting)

    def forget(self, block: Block) -> None:
        self._keys.pop(block, None)
