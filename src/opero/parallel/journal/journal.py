"""The file of a map's `journal`: the outcome of each item, recorded as it becomes known.

    {"opero_journal": 1, "function": "shop.prices:fetch"}
    {"i": 0, "item": "5d40a4cf2f1c7e0b", "ok": 12.5}
    {"i": 2, "item": "90d1f0b1b7e5a3c2", "error": "TimeoutError: no answer", "pickle": "gAWV…"}

The file only grows: the last record of an item counts. Its pickles run code when they are read: so records are signed
where there is a secret, and elsewhere pickles are read only where no other user can write.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from opero.errors import ConfigError, message_of
from opero.parallel.journal.index import CHECKED, DONE, FAILED, RECORDED, JournalIndex, Recalled
from opero.parallel.journal.records import error_of, header, load, name_in, parse, record_of, value_of
from opero.parallel.journal.seal import Seal
from opero.runtime.exclusive_file import LockedFile
from opero.runtime.forking import renew_in_child
from opero.runtime.hosts import Outcome
from opero.runtime.log import log

if TYPE_CHECKING:
    import os
    from types import TracebackType

SYNC_SECONDS = 1.0
"""A power failure loses at most what was written in this time; a crash or `kill -9` nothing that was flushed."""
MOST_BUFFERED = 1 << 20
"""Bytes of records that may wait for `flush`."""
LONGEST_HEADER = 1 << 16


class Journal:
    """Records the outcomes of the items of one map, and recalls them in the next run.

    Only `flush` and `close` may run in other threads at the same time, as when a cancelled map does not wait for one.
    Opening an existing journal does not change it, even if that fails. An incomplete last line is ignored, and removed
    by the next write.

    Args:
        path: the file. It is created if it is missing, but its directory is not.
        name: identifies the function, and is the same in every run, as from `name_in_stores`. A function that has
            changed under the same name finds its earlier results.
        secret: the key that signs its records; every record is then signed, and no other is read. None: none is.
    """

    def __init__(self, path: str | os.PathLike[str], name: str, secret: bytes | None = None) -> None:
        self.path = Path(path)
        self.name = name
        self._seal = Seal(self.path, name, secret)
        self._file: LockedFile | None = None
        self._has_warned = False
        self._index = index = JournalIndex(self.path)
        self._offsets, self._digests, self._states = index.offsets, index.digests, index.states
        self._writing = threading.RLock()
        renew_in_child(self, "_writing")
        self._waiting: list[tuple[int, int, bytes]] = []  # not yet written: index, state, line
        self._waiting_bytes = 0
        self._end = 0  # where the next record goes
        self._is_torn = False  # whether part of a line may be there
        self._is_synced = True
        self._synced_at = 0.0

    # Opening and closing

    def open(self) -> None:
        """Open and lock the file, and read its records.

        Raises:
            ConfigError: it is in use, is the journal of another function or not a journal, has a broken line, or cannot
                be opened.
            OSError: it could not be created, for example because the disk is full.
        """
        file = LockedFile(self.path, "journal")
        try:
            self.__init__(self.path, self.name, self._seal.secret)  # type: ignore[misc]  # forget what was read before
            self._seal.look()
            self._look_through(file)
        except BaseException:
            file.close()
            raise
        self._file = file

    def close(self) -> None:
        """Write what waits, sync it to the disk, and unlock the file, also if an `OSError` is raised meanwhile. Closing
        again does nothing."""
        with self._writing:
            if self._file is None or self._file.is_closed:
                return
            try:
                self._write()
                self._sync()
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except OSError as own:
            if error is None:
                raise
            log("journal_not_closed", "%s", own, path=self.path, error=own)  # the first error is the cause

    def _look_through(self, file: LockedFile) -> None:
        """Index the last record of each item."""
        size = file.size()
        own = header(self.name)
        with file.reader() as reader:
            first = reader.readline(LONGEST_HEADER)
            if size <= len(own) and first != own and own.startswith(first.rstrip(b"\0")):
                # It is new, or it was when the power failed.
                file.cut(0)
                file.append(own)
                file.sync()
                file.sync_directory()
                self._end = len(own)
                return
            try:
                name = name_in(first)
            except ValueError as error:
                raise file.refused(f"{message_of(error)}: nothing was changed; give another path") from None
            if name != self.name:
                raise file.refused(
                    f"belongs to the function {name!r}, not to {self.name!r}: nothing was changed; give another path"
                )
            self._end = len(first)
            self._note(reader, size)

    def _note(self, lines: Iterable[bytes], size: int) -> None:
        offsets, digests, states = self._offsets, self._digests, self._states
        end, number, broken = self._end, 1, 0
        for line in lines:
            if broken:  # and not the last
                raise self._broken(broken)
            number += 1
            after = end + len(line)
            try:
                index, item, has_failed = parse(line, strictly=after == size)
            except ValueError:
                if line.isspace() and line.endswith(b"\n"):
                    end = after
                else:
                    broken = number
                continue
            if index >= len(states):
                self._index.make_room(index)
            offsets[index] = end
            digests[index] = item
            states[index] = FAILED if has_failed else DONE
            end = after
        self._end = end
        self._is_torn = end != size

    # Recalling

    def recall(self, first: int, items: Sequence[Any], *, failed_only: bool = False) -> Recalled:
        """Which items to run, and the recorded outcomes of the others.

        Call it before these items run: each is identified as it is then, even if the function modifies it.

        Args:
            first: the index of the first item.
            items: that item and those after it.
            failed_only: run only items recorded as failed. By default items without a record run, too.

        Raises:
            ConfigError: the journal was written for other items, has a broken line, or an item has no digest.
            OSError: records of this run could not be written.
        """
        self._write()
        if items:
            self._index.make_room(first + len(items) - 1)
        digests, states = self._digests, self._states
        done: list[int] = []
        to_run: list[int] = []
        for index, item in enumerate(items, first):
            state = states[index]
            if failed_only and not state & RECORDED:
                continue
            own = self._index.digest(index, item)
            if state & RECORDED and own != digests[index]:
                raise self._of_others(index)
            digests[index] = own
            states[index] = state | CHECKED
            (done if state & DONE else to_run).append(index)
        outcomes: dict[int, Outcome] = {}
        for index, record in self._records(done):
            try:
                outcomes[index] = Outcome(value_of(record))
            except Exception as error:  # noqa: BLE001  # for example because its class is gone
                self._warn(
                    f"the result of item {index} cannot be read back ({type(error).__name__}: {message_of(error)})"
                )
                to_run.append(index)
        return Recalled({index: outcomes[index] for index in sorted(outcomes)}, sorted(to_run))

    def failures(self) -> dict[int, Exception]:
        """The exceptions of the items whose last record is a failure, by index.

        One that could not be pickled is a `RuntimeError` with its text.

        Raises:
            ConfigError: the journal has a broken line.
            OSError: records of this run could not be written.
        """
        self._write()
        failed = [index for index, state in enumerate(self._states) if state & FAILED]
        errors = {index: error_of(record) for index, record in self._records(failed)}
        return {index: errors[index] for index in sorted(errors)}

    def finished(self, count: int) -> None:
        """Warn about records of items from index `count` on: this run had fewer items."""
        most = len(self._states)
        while most > count and not self._states[most - 1] & RECORDED:
            most -= 1
        if most > count:
            text = (
                "the journal %s records items up to number %d, and this run had %d: it was of fewer items than another"
            )
            log("journal_longer", text, self.path, most - 1, count, path=self.path)

    def _records(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The last records of items, in the order of the file."""
        offsets, at = self._offsets, 0
        with self._opened().reader() as reader:
            for index in sorted(indices, key=offsets.__getitem__):
                if at != offsets[index]:
                    at = reader.seek(offsets[index])
                line = reader.readline()
                at += len(line)
                try:
                    record = load(line)
                except ValueError:
                    record = {}
                if record.get("i") != index:
                    raise self._broken(self._line_number(index))
                if why := self._seal.why_refused(line, record):
                    raise self._refused(index, why)
                yield index, record

    # Recording

    def record(self, index: int, item: Any, outcome: Outcome) -> None:
        """Record the outcome of an item, at the next `flush`, or now if a MiB is waiting.

        A result that neither JSON nor pickle can store is not recorded; a warning is logged once.

        Args:
            index, outcome: of the item.
            item: the item; ignored if `recall` was called for it.

        Raises:
            ConfigError: the journal was written for another item of that index, or the item has no digest.
            OSError: waiting records could not be written, and still wait.
        """
        self._opened()
        if index >= len(self._states):
            self._index.make_room(index)
        state = self._states[index]
        if not state & CHECKED:
            own = self._index.digest(index, item)
            if state & RECORDED and own != self._digests[index]:
                raise self._of_others(index)
            self._digests[index] = own
            self._states[index] = state | CHECKED
        line = record_of(index, self._digests[index], outcome)
        if line is None:
            self._warn(f"neither JSON nor pickle holds the result of item {index}, a {type(outcome.value).__name__}")
            return
        line = self._seal.sign(line)
        self._waiting.append((index, DONE if outcome.error is None else FAILED, line))
        self._waiting_bytes += len(line)
        if self._waiting_bytes >= MOST_BUFFERED:
            self._write()

    def flush(self) -> None:
        """Write what waits, so that a crash of this process loses none of it; once a second, sync it to the disk.

        It costs little if nothing waits, so call it often.

        Raises:
            OSError: it could not be written, for example because the disk is full, and still waits.
        """
        with self._writing:
            self._write()
            if time.monotonic() - self._synced_at >= SYNC_SECONDS:
                self._sync()

    def _write(self) -> None:
        with self._writing:
            file, waiting = self._opened(), self._waiting.copy()
            if not waiting:
                return
            if self._is_torn:
                file.cut(self._end)
            self._is_torn = True  # until all of it is written
            file.append(b"".join([line for _, _, line in waiting]))
            for index, state, line in waiting:
                self._offsets[index] = self._end
                self._states[index] = state | CHECKED
                self._end += len(line)
            del self._waiting[: len(waiting)]
            self._waiting_bytes = sum(len(line) for _, _, line in self._waiting.copy())
            self._is_torn = self._is_synced = False

    def _sync(self) -> None:
        if not self._is_synced:
            self._opened().sync()
            self._is_synced = True
            self._synced_at = time.monotonic()

    def _opened(self) -> LockedFile:
        if self._file is None or self._file.is_closed:
            raise ValueError(f"the journal {self.path} is not open")
        return self._file

    def _line_number(self, index: int) -> int:
        """The line number of the last record of an item."""
        lines, left = 1, self._offsets[index]
        with self._opened().reader() as reader:
            while left > 0 and (data := reader.read(min(left, 1 << 20))):
                left -= len(data)
                lines += data.count(b"\n")
        return lines

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = "the journal %s: %s, so each run computes it; others like it go unsaid"
            log("journal_item_skipped", text, self.path, what, path=self.path)

    def _broken(self, number: int) -> ConfigError:
        what = "delete that line, and its item is computed again; or give another path"
        return ConfigError(f"the journal {self.path} is broken in line {number}: {what}")

    def _refused(self, index: int, why: str) -> ConfigError:
        return ConfigError(f"the journal {self.path} line {self._line_number(index)} {why}")

    def _of_others(self, index: int) -> ConfigError:
        advice = "nothing in it was overwritten; give another path, or delete the file to start again"
        return self._refused(index, f"belongs to other items: item {index} was another one then; {advice}")
