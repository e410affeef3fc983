"""One run of `opero map`: its journal, its results, and its summary."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.cli.exits import FAILED, OK, InterruptedRunError, UsageError, failed_by_exit
from opero.cli.items import InvalidItems
from opero.cli.terminal import print_error, print_json, say
from opero.cli.words import number, seconds
from opero.dataclass import dataclass
from opero.errors import ConfigError, MapError, message_of
from opero.parallel.engine.settings import Options
from opero.parallel.journal.records import name_in
from opero.runtime.exclusive_file import LockedFile

if TYPE_CHECKING:
    from opero.cli.results import Results
    from opero.parallel.engine.blocks import Piece
    from opero.parallel.engine.mapper import Mapper
    from opero.parallel.engine.run import Run


MOST_TYPES = 5
"""The most types of exceptions that the summary lists for a kind of failure."""


def make_run(function: Any, items: Iterable[Any], journal: Path | None, progress: Any, results: Results) -> Run:
    """Create a run over items that writes outcomes as they finish; its stream yields nothing."""

    def write(piece: Piece) -> list[Any]:
        results.write([(index, value, failed) for _, index, value, failed in piece.outcomes()])
        return []

    plain = getattr(function, "__func__", function)
    instance = (function.__self__,) if plain is not function else ()
    mapper: Mapper = plain.stream.__self__
    options = Options(journal=journal, progress=progress, stage=InvalidItems())
    return mapper.new_run((*instance, items), {}, options, write)


@dataclass(slots=True)
class RunJournal:
    """The journal file of a run.

    Attributes:
        path: the path of the file; None for no journal.
        is_temporary: whether the file is deleted when all items have succeeded.
        resumes: whether it holds results of an earlier run.
    """

    path: Path | None
    is_temporary: bool
    resumes: bool = False

    @classmethod
    def of(cls, results: Results, path: Path | None, *, wanted: bool) -> RunJournal:
        """Return the journal at `path`, or by default a temporary one next to the results.

        Args:
            results: the results of the run.
            path: the path that the user has given, or None.
            wanted: whether there is a journal by default; only if the results go to a regular file.
        """
        if path is not None or not (wanted and results.is_regular_file):
            return cls(path, is_temporary=False)
        return cls(Path(f"{results.path}.journal"), is_temporary=True)

    def prepare(self, results: Results, *, overwrite: bool) -> None:
        """Check that the run does not overwrite results that are not in the journal.

        Args:
            results: the results of the run.
            overwrite: start from the beginning instead, with an empty journal.

        Raises:
            UsageError: the output file has content but no journal, or cannot be written.
        """
        exists = self.path is not None and self.path.exists()
        self.resumes = exists and not overwrite
        if overwrite:
            if exists:
                self._clear()
        elif results.has_content and not exists:
            missing = "" if self.path is None else f" and there is no journal {self.path} to resume from"
            raise UsageError(
                f"{results.path} is not empty{missing}; nothing was run: use another file for -o, or --overwrite to "
                "start from the beginning"
            )
        results.check()

    def _clear(self) -> None:
        """Empty the journal.

        Raises:
            ConfigError: another run is using the journal, or the file is not a journal.
        """
        assert self.path is not None
        file = LockedFile(self.path, "journal")
        try:
            with file.reader() as reader:
                first = reader.readline()
            if first:
                try:
                    name_in(first)
                except ValueError as error:
                    raise file.refused(f"{message_of(error)}: nothing was changed; give another path") from None
            file.cut(0)
        finally:
            file.close()

    def finish(self, results: Results) -> None:
        """Delete a temporary journal if all items have succeeded."""
        if self.is_temporary and self.path is not None and not results.failed:
            self.path.unlink(missing_ok=True)

    @property
    def hint(self) -> str:
        """How to resume the run."""
        return "" if self.path is None else "; give the same command again to resume"


@dataclass(slots=True)
class MapRun:
    """Runs a map, and prints its summary.

    Attributes:
        target: the function's name, as given on the command line.
        map: the run of the map.
        results: writes the results.
        journal: the journal of the run.
        as_json: whether the summary is printed as JSON.
        began: when it began.
    """

    target: str
    map: Run
    results: Results
    journal: RunJournal
    as_json: bool
    began: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Run the map to its end, and return the exit code."""
        try:
            self._write_results()
        except ConfigError as error:
            text = str(error)
            if not self.journal.is_temporary or str(self.journal.path) not in text or "in use" in text:
                raise
            raise UsageError(f"{text}, or --overwrite to start from the beginning") from error
        except KeyboardInterrupt:
            raise InterruptedRunError(f"interrupted: {self._counts()}{self.journal.hint}") from None
        except SystemExit as end:
            raise failed_by_exit(self.target, end) from end
        except MapError as error:
            print_error(f"map stopped: {self._why(error)}")
            self._summarize(finished=False)
            return FAILED
        finally:
            self.results.close()
        self.journal.finish(self.results)
        self._summarize(finished=True)
        return FAILED if self.results.failed else OK

    def _write_results(self) -> None:
        try:
            if self.map.binding.is_async:
                asyncio.run(self._drain())  # asyncio delivers a Ctrl-C between writes
            else:
                with self.results.delaying_interrupts():
                    for _ in self.map.stream():
                        pass
        except BaseException as error:
            self._write_remaining(error)
            raise
        self.results.finish()

    async def _drain(self) -> None:
        async for _ in self.map.stream_async():
            pass

    def _write_remaining(self, error: BaseException) -> None:
        """Write the outcomes of items that had finished but were not written when the map stopped."""
        stopped: Any = error
        while stopped is not None and not isinstance(stopped, MapError):
            stopped = stopped.__cause__ or stopped.__context__
        if stopped is not None and not isinstance(error, OSError):
            outcomes = [(index, value, False) for index, value in stopped.results.items()]
            outcomes += [(each.index, each.exception, True) for each in stopped.failures]
            self.results.write(outcomes)
        if not isinstance(error, OSError):
            self.results.write_held()

    def _why(self, error: Any) -> str:
        if error.reason is not None:
            return message_of(error.reason)
        limit = self.map.policy.max_failures
        if limit is None:
            return "an item failed"
        return (
            f"more items failed than max_failures allows ({limit if isinstance(limit, int) else f'{100 * limit:g}%'})"
        )

    def _counts(self) -> str:
        done = self.results.succeeded + self.results.failed
        where = "" if self.results.is_stdout else f", in {self.results.path}"
        return f"{done:,} items done, {self.results.failed:,} failed{where}"

    def _details(self) -> Iterator[str]:
        """Yield how long the run took, with the rate unless an earlier run has done some, and each kind of failure."""
        results, passed = self.results, time.monotonic() - self.began
        rate = (results.succeeded + results.failed) / max(passed, 1e-6)
        shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        yield f"  took {seconds(float(f'{passed:.3g}'))}{'' if self.journal.resumes else f', {shown} items a second'}"
        for kind, types in sorted(results.failures.items(), key=lambda each: -each[1].total()):
            names = ", ".join(f"{name} ({count:,})" for name, count in types.most_common(MOST_TYPES))
            more = ", …" if len(types) > MOST_TYPES else ""
            yield f"  {types.total():,} {kind}: {names}{more}"
        if results.invalid:
            yield f"  {number(results.invalid, 'invalid line')} of the file of items"

    def _summarize(self, *, finished: bool) -> None:
        results = self.results
        if not self.as_json:
            hint = self.journal.hint
            if finished:
                retry = "; give the same command again to retry the failed items"
                hint = retry if results.failed and self.journal.path is not None else ""
            say("\n".join([f"{self._counts()}{hint}", *self._details()]), file=sys.stderr)
            return
        passed = time.monotonic() - self.began
        data = {
            "function": self.target,
            "finished": finished,
            "succeeded": results.succeeded,
            "failed": results.failed,
            "invalid": results.invalid,
            "failures": {kind: dict(types) for kind, types in results.failures.items()},
            "output": None if results.is_stdout else results.path,
            "journal": str(self.journal.path) if self.journal.path is not None and self.journal.path.exists() else None,
            "seconds": round(passed, 3),
            "stats": self.map.binding.stats.as_dict(),
        }
        print_json(data, sys.stderr if results.is_stdout else results.out)
