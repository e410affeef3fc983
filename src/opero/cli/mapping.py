"""One run of `opero map`: its journal, its results, and what is said at its end."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opero.cli.exits import NO, OK, InterruptedRunError, UsageError, ended
from opero.cli.terminal import print_error, print_json
from opero.config.report import without_passwords
from opero.errors import ConfigError, MapError, text_of
from opero.parallel.engine.settings import Options
from opero.parallel.journal.records import name_in
from opero.runtime.exclusive_file import LockedFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opero.cli.results import Results
    from opero.parallel.engine.blocks import Piece
    from opero.parallel.engine.mapper import Mapper
    from opero.parallel.engine.run import Run

__all__ = ["MapRun", "Record", "make_run"]


def make_run(function: Any, items: Iterable[Any], journal: Path | None, progress: Any, results: Results) -> Run:
    """A run over these items that writes what becomes of each as it finishes; its stream yields nothing."""

    def write(piece: Piece) -> list[Any]:
        results.write([(index, value, failed) for _, index, value, failed in piece.outcomes()])
        return []

    plain = getattr(function, "__func__", function)
    instance = (function.__self__,) if plain is not function else ()
    mapper: Mapper = plain.stream.__self__
    return mapper.new_run((*instance, items), {}, Options(journal=journal, progress=progress), write)


class Record:
    """The journal of a run.

    Args:
        path: its file, or None.
        is_own: nobody has named it: it goes when there is nothing left to do.
    """

    def __init__(self, path: Path | None, *, is_own: bool) -> None:
        self.path = path
        self.is_own = is_own

    @classmethod
    def of(cls, results: Results, named: Path | None, *, wanted: bool) -> Record:
        if named is not None or not (wanted and results.is_kept):
            return cls(named, is_own=False)
        return cls(Path(f"{results.path}.journal"), is_own=True)

    def prepare(self, results: Results, *, overwrite: bool) -> None:
        """See that nothing is lost that the journal does not have.

        Raises:
            UsageError: the output file has something in it that no journal knows of, or cannot be written.
        """
        goes_on = self.path is not None and self.path.exists()
        if overwrite:
            if goes_on:
                self._clear()
        elif results.is_there and not goes_on:
            raise UsageError(
                f"{results.path} has something in it already"
                f"{'' if self.path is None else f', and there is no {self.path} to go on from'}: nothing was run; give "
                "another file with -o, or --overwrite to begin anew"
            )
        results.check()

    def _clear(self) -> None:
        """Forget what is done.

        Raises:
            ConfigError: another run is using the journal, or it is none.
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
                    raise file.refused(f"{error}: nothing was changed; give another path") from None
            file.cut(0)
        finally:
            file.close()

    def finish(self, results: Results) -> None:
        """Nothing is left to do."""
        if self.is_own and self.path is not None and not results.failed:
            self.path.unlink(missing_ok=True)

    @property
    def cure(self) -> str:
        """How another run does what is left."""
        return "" if self.path is None else "; give the same command again to go on from there"


class MapRun:
    """One run, and what is said of it."""

    def __init__(self, target: str, run: Run, results: Results, record: Record, *, as_json: bool) -> None:
        self.target = target
        self.map = run
        self.results = results
        self.record = record
        self.as_json = as_json
        self.began = time.monotonic()

    def run(self) -> int:
        try:
            self._take()
        except ConfigError as error:
            told = str(error)
            if not self.record.is_own or str(self.record.path) not in told or "in use" in told:
                raise
            raise UsageError(f"{told}, or --overwrite to begin anew") from error
        except KeyboardInterrupt:
            raise InterruptedRunError(f"interrupted: {self._told()}{self.record.cure}") from None
        except SystemExit as end:
            raise ended(self.target, end) from end
        except MapError as error:
            print_error(f"the map was ended: {self._why(error)}")
            self._summarize(whole=False)
            return NO
        finally:
            self.results.close()
        self.record.finish(self.results)
        self._summarize(whole=True)
        return NO if self.results.failed else OK

    def _take(self) -> None:
        """Run it to its end; the results are written on the way."""
        try:
            if self.map.binding.is_async:
                asyncio.run(self._drain())  # whose Ctrl-C waits for what is being written
            else:
                with self.results.in_one_piece():
                    for _ in self.map.stream():
                        pass
        except BaseException as error:
            self._salvage(error)
            raise
        self.results.begin()

    async def _drain(self) -> None:
        async for _ in self.map.stream_async():
            pass

    def _salvage(self, error: BaseException) -> None:
        """Write what was done and not handed out when the map ended."""
        left: Any = error
        while left is not None and not isinstance(left, MapError):
            left = left.__cause__ or left.__context__
        if left is not None and not isinstance(error, OSError):
            done = [(index, value, False) for index, value in left.results.items()]
            done += [(each.index, each.exception, True) for each in left.failures]
            self.results.write(done)

    def _why(self, error: Any) -> str:
        if error.reason is not None:
            return without_passwords(text_of(error.reason))
        most = self.map.policy.max_failures
        if most is None:
            return "an item failed"
        return f"more items failed than max_failures allows ({most if isinstance(most, int) else f'{100 * most:g}%'})"

    def _told(self) -> str:
        done = self.results.succeeded + self.results.failed
        where = "" if self.results.is_stdout else f", in {self.results.path}"
        return f"{done:,} items are done, {self.results.failed:,} of them failed{where}"

    def _summarize(self, *, whole: bool) -> None:
        results = self.results
        has_more = not whole or bool(results.failed)
        if not self.as_json:
            retry = ""
            if has_more and self.record.path is not None:
                retry = "; give the same command again to run what failed" if whole else self.record.cure
            print(f"{self._told()}{retry}", file=sys.stderr)
            return
        data = {
            "function": self.target,
            "finished": whole,
            "succeeded": results.succeeded,
            "failed": results.failed,
            "output": None if results.is_stdout else results.path,
            "journal": str(self.record.path) if self.record.path is not None and self.record.path.exists() else None,
            "seconds": round(time.monotonic() - self.began, 3),
            "stats": self.map.binding.stats.as_dict(),
        }
        print_json(data, sys.stderr if results.is_stdout else results.out)
