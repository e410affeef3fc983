"""The journal of a map: results of an earlier run are reused, and outcomes of this one are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from opero.cache.content import freeze
from opero.cache.digest import digest
from opero.cache.identity import name_in_stores
from opero.errors import ConfigError
from opero.runtime.functions import full_name
from opero.runtime.hosts import Outcome

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Block
    from opero.parallel.engine.settings import FixedArguments
    from opero.parallel.journal.journal import Journal


def journal_name(function: Callable[..., Any], fixed: FixedArguments) -> str:
    """The name of a function and its fixed arguments in a journal."""
    name = _as_in_config(name_in_stores(function), function)
    try:
        common = digest(freeze((fixed.before, fixed.after, tuple(sorted((fixed.kwargs or {}).items())))))
    except ConfigError:  # for example an instance without a key, which cannot be recognized in a later run
        return name
    return f"{name} with {common[:16]}" if fixed.before or fixed.after or fixed.kwargs else name


def _as_in_config(name: str, function: Callable[..., Any]) -> str:
    """A name as `functions:` and the command line write it: "module:qualname"."""
    full, qualname = full_name(function), getattr(function, "__qualname__", "")
    if not qualname or not name.startswith(full):
        return name
    return f"{full.removesuffix(f'.{qualname}')}:{qualname}{name.removeprefix(full)}"


class JournalStage:
    """Answers items whose results the journal has, and records the outcomes of the others.

    Args:
        journal: the journal, which is open.
        failed_only: run only items that the journal records as failed; items without a record have no result.
        is_blocking: the reader of the results must not wait for a disk.
    """

    answers_failures = False

    def __init__(self, journal: Journal, *, failed_only: bool, is_blocking: bool) -> None:
        self.journal = journal
        self.failed_only = failed_only
        self.is_blocking = is_blocking

    def look(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        items, missing = block.items, []
        for first, run in _runs(block.indices, positions):
            recalled = self.journal.recall(first, [items[each] for each in run], failed_only=self.failed_only)
            at = dict(zip(range(first, first + len(run)), run, strict=True))
            for index, outcome in recalled.outcomes.items():
                block.put(at[index], outcome.value, failed=False)
            missing += [at[index] for index in recalled.to_run]
            for index in at.keys() - recalled.outcomes.keys() - set(recalled.to_run):
                block.leave_out(at[index])
        return missing

    def took(self, block: Block, position: int, value: Any, *, failed: bool, keep: bool) -> tuple[Any, bool]:
        outcome = Outcome(error=value) if failed else Outcome(value)
        self.journal.record(block.indices[position], block.items[position], outcome)
        return value, failed

    def followers(self) -> list[tuple[Block, int]]:
        return []

    def settle(self) -> None:
        self.journal.flush()

    def forget(self, block: Block) -> None:
        pass


def _runs(indices: Sequence[int], positions: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The positions in groups of consecutive items, each with the index of its first item."""
    for _, group in groupby(enumerate(positions), lambda each: indices[each[1]] - each[0]):
        run = [position for _, position in group]
        yield indices[run[0]], run
