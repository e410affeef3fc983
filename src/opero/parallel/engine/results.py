"""The results of a map, its failures, and the error that carries both."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain as chained
from typing import TYPE_CHECKING, Any

from opero.errors import Failure, MapError, MemoryLimitError, describe
from opero.parallel.engine.blocks import Piece

if TYPE_CHECKING:
    from opero.parallel.engine.settings import MapSettings
    from opero.parallel.engine.source import Source
    from opero.parallel.engine.window import Window

JUDGED_FROM = 20
"""Finished items from which on a fraction of failures is meaningful."""

# Not by assignment, which an exception class may refuse, such as a frozen dataclass.
_set_cause: Any = vars(BaseException)["__cause__"].__set__


class Results:
    """Collects the results of one map.

    Args:
        settings: of the map.
        source: its items.
        earlier: results of an earlier run, of which this one runs what was left.
        retry: makes what `retry_failed` calls, of the items left, the unread source, and the results so far.

    Attributes:
        keeps: all results are wanted at the end, not as a stream.
        window: the map's, once it has started.
        reason: why the map was ended before its end, if it was.
    """

    window: Window

    def __init__(
        self, settings: MapSettings, source: Source, earlier: dict[int, Any], *, retry: Callable[..., Any]
    ) -> None:
        self.settings = settings
        self.source = source
        self.earlier = earlier
        self.keeps = True
        self.reason: Exception | None = None
        self._retry = retry
        self._undelivered: list[Piece] = []  # what the reader of a stream does not receive, for the error at its end

    # Failures

    @property
    def continues_after_failures(self) -> bool:
        """Whether a failed item leaves the rest of its chunk running."""
        return self.settings.policy.on_error != "raise" or self.settings.policy.max_failures is not None

    @property
    def completes(self) -> bool:
        """Whether the reader gets all results before the first failure, which ends the map."""
        return not (self.keeps or self.continues_after_failures) and self.settings.policy.ordered

    @property
    def _has_too_many_failures(self) -> bool:
        most, failed = self.settings.policy.max_failures, self.window.failed
        if most is None:
            return failed > 0 and self.settings.policy.on_error == "raise"
        return failed > (most if isinstance(most, int) else most * self.window.finished)

    def continues(self) -> bool:
        """Whether the map continues after the failures so far."""
        if isinstance(self.settings.policy.max_failures, float) and self.window.finished < JUDGED_FROM:
            return True
        return not self._has_too_many_failures

    def raise_if_failed(self) -> None:
        """At the end of a map, raise its error, if there is one."""
        policy, error = self.settings.policy, self.source.error
        if error is not None:
            self.attach(error, "the source of its items failed")
            raise error
        if self._has_too_many_failures or self.window.is_stopped or (self.window.failed and policy.on_error == "raise"):
            reason = "" if self.reason is None else str(self.reason)
            if policy.max_failures is not None and self._has_too_many_failures:
                reason = f"more than max_failures={policy.max_failures:g} allows"
            raise self.error(reason)

    def attach(self, ended_by: BaseException, reason: str, *, was_ended: bool = False) -> None:
        """Make the error of this map the cause of the exception that has ended it; a cause that it has is behind it."""
        error = self.error(reason, was_ended=was_ended)
        if ended_by.__cause__ is not None:
            error.__cause__ = ended_by.__cause__
        _set_cause(ended_by, error)

    def error(self, reason: str, *, was_ended: bool = False) -> MapError:
        """An error with all results and failures, except results that a stream has delivered.

        Args:
            reason: why the map has ended; "" if because of its failures.
            was_ended: whether it was ended from outside, such as by Ctrl-C.
        """
        results, failures, left = dict(self.earlier), [], []
        for piece in self._held_pieces():
            for position, index, value, failed in piece.outcomes():
                if failed:
                    failures.append(Failure(index, piece.block.items[position], value))
                    left.append((index, piece.block.items[position]))
                else:
                    results[index] = value
        for block in self.window.blocks.values():
            left += [(block.indices[position], block.items[position]) for position in block.unfinished()]
        failures.sort(key=lambda failure: failure.index)
        unread_items = self.source.rest()
        unread = self.source.left
        if unread is not None:
            unread -= len(self.source.again)
        left += self.source.again
        left.sort(key=lambda item: item[0])
        results = dict(sorted(results.items()))
        message = self._summary(results, failures, len(left) - len(failures), unread)
        if reason:
            message += f"; {reason}"
        journal = self.settings.options.journal
        if journal is not None:
            message += f"; to resume, map the same items again with journal={str(journal)!r}"
        elif was_ended:
            message += "; with a journal (journal=PATH) the next run would resume"
        if failures:
            first = failures[0]
            message += f"; item {first.index}: {describe(first.exception)}"
        kind = MemoryLimitError if self._is_out_of_memory(failures) else MapError
        return kind(message, results, failures, self.reason, retry=self._retry(left, unread_items, results))

    def _held_pieces(self) -> list[Piece]:
        blocks = self.window.blocks.values()
        if self.keeps:
            return [Piece(block, block.finished()) for block in blocks]
        pieces = [Piece(block, [each for each in block.finished() if each not in block.given]) for block in blocks]
        return pieces + self._undelivered + self.window.pieces

    def _summary(self, results: dict[int, Any], failures: list[Failure], unfinished: int, unread: int | None) -> str:
        count = self.source.index + (unread or 0)
        succeeded = len(results) if self.keeps else self.window.finished - self.window.failed  # also what was yielded
        text = f"{self.settings.name}: {len(failures)} of {count} items failed, {succeeded} succeeded"
        missing = unfinished + (unread or 0)
        if missing:
            text += f", {missing} {'was' if missing == 1 else 'were'} not finished"
        elif unread is None and not self.source.is_exhausted:
            text += ", and there may be more"
        return text

    def _is_out_of_memory(self, failures: list[Failure]) -> bool:
        if isinstance(self.reason, MemoryError):
            return True
        is_limited = self.settings.policy.max_memory is not None
        return is_limited and any(isinstance(each.exception, MemoryError) for each in failures)

    # Results

    def all(self) -> list[Any]:
        """All results, in the order that the policy says."""
        self.raise_if_failed()
        policy, blocks = self.settings.policy, self.window.blocks.values()
        if self.earlier:
            outcomes = {index: (value, False) for index, value in self.earlier.items()}
            for block in blocks:
                outcomes.update({index: (value, failed) for _, index, value, failed in Piece(block).outcomes()})
            skip = policy.on_error == "skip"
            order = sorted(outcomes) if policy.ordered else outcomes
            return [outcomes[index][0] for index in order if not (skip and outcomes[index][1])]
        pieces = [Piece(block) for block in blocks] if policy.ordered else self.window.pieces
        if len(pieces) == 1:
            return self._values(pieces[0])
        return list(chained.from_iterable(map(self._values, pieces)))

    def _values(self, piece: Piece) -> list[Any]:
        """What a list, or a stream that no failure ends, holds of a piece."""
        if self.settings.policy.on_error == "return" or not piece.has_failures:
            return piece.values()
        return [value for _, _, value, failed in piece.outcomes() if not failed]

    def deliver(self, piece: Piece) -> list[Any]:
        """What the reader of a stream receives of a piece, which keeps none of it. The rest is kept for the error at
        the end.

        If the first failure ends the stream, an ordered one delivers nothing after it; else all successes are.
        """
        policy = self.settings.policy
        if not (self._undelivered or piece.has_failures) or policy.on_error == "return":
            return piece.take()
        if policy.on_error == "skip":
            values = self._values(piece)
            piece.take()
            return values
        block, positions = piece.block, piece.all_positions
        if self.completes:
            first = next((at for at, each in enumerate(positions) if each in block.failures), 0)
            first = 0 if self._undelivered else first
            good, rest = positions[:first], positions[first:]
        else:
            good = [each for each in positions if each not in block.failures]
            rest = [each for each in positions if each in block.failures]
        if rest:
            self._undelivered.append(Piece(block, rest).copy())
        return Piece(block, good).take()
