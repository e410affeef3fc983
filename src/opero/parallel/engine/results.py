"""What a run comes to: its results, its failures, and the error that carries both."""

from __future__ import annotations

from itertools import chain as chained
from typing import TYPE_CHECKING, Any

from opero.errors import Failure, MapError, MemoryLimitError, text_of
from opero.parallel.engine.blocks import Piece

if TYPE_CHECKING:
    from opero.parallel.engine.run import Run

__all__ = ["Outcomes"]

JUDGED_FROM = 20
"""Finished items from which on a ratio of failures says something."""


class Outcomes:
    """What a run comes to.

    Attributes:
        held: what the reader of a stream cannot have, for the error at its end.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.held: list[Piece] = []

    # Failures

    @property
    def goes_on_at_failures(self) -> bool:
        """Whether a failed item does not end its chunk."""
        return self.run.policy.on_error != "raise" or self.run.policy.max_failures is not None

    @property
    def _has_too_many_failures(self) -> bool:
        most, failed = self.run.policy.max_failures, self.run.window.failed
        if most is None:
            return failed > 0 and self.run.policy.on_error == "raise"
        return failed > (most if isinstance(most, int) else most * self.run.window.finished)

    def goes_on(self) -> bool:
        """Whether the map goes on after the failures so far."""
        if isinstance(self.run.policy.max_failures, float) and self.run.window.finished < JUDGED_FROM:
            return True
        return not self._has_too_many_failures

    def raise_if_failed(self) -> None:
        """At the end of a run, raise what there is to raise."""
        window = self.run.window
        if self.run.source.error is not None:
            error = self.run.source.error
            if error.__cause__ is None:
                error.__cause__ = self.error("the source of its items failed")
            raise error
        if self._has_too_many_failures or window.is_stopped or (window.failed and self.run.policy.on_error == "raise"):
            told = "" if self.run.reason is None else str(self.run.reason)
            if self.run.policy.max_failures is not None and self._has_too_many_failures:
                told = f"more than max_failures={self.run.policy.max_failures:g} allows"
            raise self.error(told)

    def error(self, reason: str) -> MapError:
        """All that is known of the items, but for those that a stream has handed out."""
        results, failures, left = dict(self.run.before), [], []
        blocks = self.run.window.blocks.values()
        if self.run.keeps:
            pieces = [Piece(block, block.finished()) for block in blocks]
        else:
            pieces = [Piece(block, [each for each in block.finished() if each not in block.given]) for block in blocks]
            pieces += self.held + self.run.window.pieces
        for piece in pieces:
            for position, index, value, failed in piece.outcomes():
                if failed:
                    failures.append(Failure(index, piece.block.items[position], value))
                    left.append((index, piece.block.items[position]))
                else:
                    results[index] = value
        for block in blocks:
            left += [(block.indices[position], block.items[position]) for position in block.unfinished()]
        failures.sort(key=lambda failure: failure.index)
        rest = self.run.source.rest()
        count, unread = self.run.source.index, self.run.source.left
        if unread is not None:
            unread -= len(self.run.source.again)
        left += self.run.source.again
        left.sort(key=lambda item: item[0])
        missing = len(left) - len(failures) + (unread or 0)
        told = f"{self.run.binding.name}: {len(failures)} of {count + (unread or 0)} items failed, "
        told += f"{len(results)} succeeded"
        if missing:
            told += f", {missing} were not {'finished' if self.run.window.under_way else 'begun'}"
        elif unread is None and not self.run.source.is_exhausted:
            told += ", and there may be more"
        if reason:
            told += f"; {reason}"
        if failures:
            first = failures[0]
            told += f"; item {first.index}: {type(first.exception).__name__}: {text_of(first.exception)}"
        again = self.run.again(left, rest, dict(sorted(results.items())))
        retry = again.run_async if self.run.binding.is_async else again.run
        out_of_memory = isinstance(self.run.reason, MemoryError) or (
            self.run.policy.max_memory is not None and any(isinstance(each.exception, MemoryError) for each in failures)
        )
        kind = MemoryLimitError if out_of_memory else MapError
        return kind(told, dict(sorted(results.items())), failures, self.run.reason, retry=retry)

    # Results

    def results(self) -> list[Any]:
        """All of them, in the order that the policy says."""
        self.raise_if_failed()
        window = self.run.window
        blocks = window.blocks.values()
        if self.run.before:
            outcomes = {index: (value, False) for index, value in self.run.before.items()}
            for block in blocks:
                outcomes.update({index: (value, failed) for _, index, value, failed in Piece(block).outcomes()})
            skip = self.run.policy.on_error == "skip"
            order = sorted(outcomes) if self.run.policy.ordered else outcomes
            return [outcomes[index][0] for index in order if not (skip and outcomes[index][1])]
        pieces = [Piece(block) for block in blocks] if self.run.policy.ordered else window.pieces
        if len(pieces) == 1:
            return self._values(pieces[0])
        return list(chained.from_iterable(map(self._values, pieces)))

    def _values(self, piece: Piece) -> list[Any]:
        """What a list of the results, or a stream that no failure ends, has of a piece."""
        if self.run.policy.on_error == "return" or not piece.has_failures:
            return piece.values()
        return [value for _, _, value, failed in piece.outcomes() if not failed]

    def given(self, piece: Piece) -> list[Any]:
        """What the reader of a stream gets of a piece. What he cannot have is held for the error at the end.

        Where the first failure ends the stream, an ordered one has nothing after it; else all that succeeds is given.
        """
        if self.run.policy.on_error != "raise" or not (self.held or piece.has_failures):
            return self._values(piece)
        block, positions = piece.block, piece.all_positions
        if self.run.policy.ordered and self.run.policy.max_failures is None:
            first = next((at for at, each in enumerate(positions) if each in block.failures), 0)
            first = 0 if self.held else first
            good, rest = positions[:first], positions[first:]
        else:
            good = [each for each in positions if each not in block.failures]
            rest = [each for each in positions if each in block.failures]
        if rest:
            self.held.append(Piece(block, rest).without_the_rest())
        return Piece(block, good).values()
