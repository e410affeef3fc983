"""Hands out finished items: at once, or in the order of their source."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opero.parallel.engine.blocks import Piece

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Block


class Delivery:
    """The blocks of a map that were not handed out, and what is ready to be.

    Args:
        ordered: hand out in the order of the source.
        keeps: hand out nothing: `blocks` and `pieces` are read at the end.

    Attributes:
        blocks: by number, the blocks of which something was not handed out.
        pieces: what is ready.
        consumed: items that the reader has finished with.
    """

    def __init__(self, *, ordered: bool, keeps: bool) -> None:
        self.ordered = ordered
        self.keeps = keeps
        self.blocks: dict[int, Block] = {}
        self.pieces: list[Piece] = []
        self.consumed = 0
        self._handed: list[Piece] = []
        self._complete: list[tuple[int, Block]] = []  # a heap, by the blocks' numbers
        self._next_block = 0

    def hand_out(self) -> list[Piece]:
        """What is ready."""
        self._handed, self.pieces = self.pieces, []
        return self._handed

    def consume(self) -> bool:
        """The reader has finished with what was handed out; whether there was anything."""
        self.consumed += sum(piece.size for piece in self._handed)
        had_some, self._handed = bool(self._handed), []
        return had_some

    def add(self, block: Block, positions: Sequence[int] | None) -> None:
        """Items of a block have finished; None: all of them."""
        if not self.ordered:
            self._give(block, positions)
            if not block.pending and not self.keeps:
                del self.blocks[block.number]
        elif not self.keeps:
            self._give_in_turn(block)

    def _give_in_turn(self, block: Block) -> None:
        """Give what has finished of a block if all before it has, and then what comes after it."""
        if not block.pending:
            heapq.heappush(self._complete, (block.number, block))
        while self._complete and self._complete[0][0] == self._next_block:
            _, block = heapq.heappop(self._complete)
            self._next_block += 1
            del self.blocks[block.number]
            self._give(block, block.prefix() if block.given else None)
        begun = self.blocks.get(self._next_block)
        if begun is not None and begun.done and (finished := begun.prefix()):
            self._give(begun, finished)

    def _give(self, block: Block, positions: Sequence[int] | None) -> None:
        if block.pending:
            assert positions is not None
            block.given.update(positions)
        self.pieces.append(Piece(block, positions))
