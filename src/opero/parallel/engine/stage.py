"""The interface of a stage: something that can answer items before they are sent, such as a cache or a journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Block


class Stage(Protocol):
    """Answers some items, and records the outcomes of the others.

    Attributes:
        is_blocking: `look` and `settle` wait for a disk or a network, and must not run in the reader's event loop.
        answers_failures: it has an answer for an item that fails.
    """

    is_blocking: bool

    @property
    def answers_failures(self) -> bool: ...

    def look(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        """Fill in the items at these positions that need no call; return the positions of the others."""

    def took(self, block: Block, position: int, value: Any, *, failed: bool, keep: bool) -> tuple[Any, bool]:
        """Record an outcome; return the one to use, and whether it failed. Not `keep`: it came from a fallback."""

    def followers(self) -> list[tuple[Block, int]]:
        """The items that were answered by what was taken since the last call."""

    def settle(self) -> None:
        """Write what was taken."""

    def forget(self, block: Block) -> None:
        """All items of a block have finished."""


class PassingStage:
    """A stage that answers no items, and passes on every outcome: what a stage does that says nothing else."""

    is_blocking = False
    answers_failures = False

    def look(self, block: Block, positions: Sequence[int]) -> Sequence[int]:
        return positions

    def took(self, block: Block, position: int, value: Any, *, failed: bool, keep: bool) -> tuple[Any, bool]:
        return value, failed

    def followers(self) -> list[tuple[Block, int]]:
        return []

    def settle(self) -> None:
        pass

    def forget(self, block: Block) -> None:
        pass
