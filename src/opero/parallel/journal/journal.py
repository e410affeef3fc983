"""The file behind a map's `journal`: what became of each item, recorded as it becomes known.

    {"opero_journal": 1, "function": "shop.prices:fetch"}
    {"i": 0, "item": "5d40a4cf2f1c7e0b", "ok": 12.5}
    {"i": 2, "item": "90d1f0b1b7e5a3c2", "error": "TimeoutError: no answer", "pickle": "gAWV…"}

It only ever grows: of the records of one item the last counts. Its pickles run code when they are read, so a journal is
to be trusted like a script.
"""

from __future__ import annotations

import os
import time
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

from opero.cache.digest import digest
from opero.cache.keys import freeze
from opero.errors import ConfigError
from opero.observe.logs import logger
from opero.parallel.journal.records import MOST_ITEMS, error_of, header, load, name_in, parse, record_of, value_of
from opero.runtime.exclusive_file import LockedFile
from opero.runtime.hosts import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

__all__ = ["Journal", "Recalled"]

SYNC_SECONDS = 1.0
"""A power cut takes at most what was written in this time; a crash or `kill -9` nothing that was flushed."""
MOST_BUFFERED = 1 << 20
"""Bytes of records that wait for `flush`."""
LONGEST_HEADER = 1 << 16
AT_ONCE = 1024
"""Items for which there is room as soon as there is for one more."""

# What is known of an item: what its last record says, and whether its digest here is that of an item of this run.
DONE = 1
FAILED = 2
RECORDED = DONE | FAILED
CHECKED = 4


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a journal says of some items. Those in neither part are left out of this run.

    Attributes:
        outcomes: index → outcome, of the items that need no call, in their order.
        to_run: the indices of the items that do, in their order.
    """

    outcomes: dict[int, Outcome]
    to_run: list[int]


class Journal:
    """Records what became of the items of one function's map, and recalls it in the next run.

    One thread at a time may use it. Opening changes nothing in a journal that exists, and neither does being refused;
    a last line that was torn counts for nothing, and is cut off when something is written after it.

    Args:
        path: the file. It is created where it is missing, but not its directory.
        name: what stands for the function, the same in every run, as of `name_in_stores`. A function that does
            something else now, under the same name, finds what it did before.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        self.path = Path(path)
        self.name = name
        self._file: LockedFile | None = None
        self._has_warned = False
        # By the item's number: 17 bytes each, and none of its value.
        self._offsets = array("q")
        self._digests = array("Q")
        self._states = bytearray()
        # What is recorded and not written: number, state, line.
        self._waiting: list[tuple[int, int, bytes]] = []
        self._waiting_bytes = 0
        # Where the next record goes, and whether something else may be there.
        self._end = 0
        self._is_torn = False
        self._is_synced = True
        self._synced_at = 0.0

    # Opening and closing

    def open(self) -> None:
        """Open the file, keep others from it, and look through what it records.

        Raises:
            ConfigError: it is in use, is another function's journal or none at all, has a broken line, or cannot be
                opened.
            OSError: it could not be created, as on a full disk.
        """
        file = LockedFile(self.path, "journal")
        try:
            self.__init__(self.path, self.name)  # type: ignore[misc]  # nothing is left of an earlier time
            self._look_through(file)
        except BaseException:
            file.close()
            raise
        self._file = file

    def close(self) -> None:
        """Write what waits, make sure that it is on the disk, and let others use the file. Closing again does nothing.

        Raises:
            OSError: it could not be written. The file is closed all the same.
        """
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
            logger.warning("%s", own)  # what went wrong before is what the caller wants to know

    def _look_through(self, file: LockedFile) -> None:
        """Note where each item's last record is."""
        size = file.size()
        own = header(self.name)
        with file.reader() as reader:
            first = reader.readline(LONGEST_HEADER)
            if size <= len(own) and first != own and own.startswith(first.rstrip(b"\0")):
                # It is new, or it was when the power was cut.
                file.cut(0)
                file.append(own)
                file.sync()
                file.sync_directory()
                self._end = len(own)
                return
            try:
                name = name_in(first)
            except ValueError as error:
                raise file.refused(f"{error}: nothing was changed; give another path") from None
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
                self._make_room(index)
            offsets[index] = end
            digests[index] = item
            states[index] = FAILED if has_failed else DONE
            end = after
        self._end = end
        self._is_torn = end != size

    # Recalling

    def recall(self, first: int, items: Sequence[Any], *, failed_only: bool = False) -> Recalled:
        """What there is to do for some items, and what became of the others before.

        To be asked before these items run: each counts as it was then, even if the function changes it.

        Args:
            first: the first item's number.
            items: that one, and those after it.
            failed_only: run what has failed before and nothing else. By default what has no record runs, too.

        Raises:
            ConfigError: the journal was written for other items, has a broken line, or an item has no digest.
            OSError: what was recorded in this run could not be written.
        """
        self._write()
        if items:
            self._make_room(first + len(items) - 1)
        digests, states = self._digests, self._states
        done: list[int] = []
        to_run: list[int] = []
        for index, item in enumerate(items, first):
            state = states[index]
            if failed_only and not state & RECORDED:
                continue
            own = self._digest(index, item)
            if state & RECORDED and own != digests[index]:
                raise self._of_others(index)
            digests[index] = own
            states[index] = state | CHECKED
            (done if state & DONE else to_run).append(index)
        outcomes: dict[int, Outcome] = {}
        for index, record in self._records(done):
            try:
                outcomes[index] = Outcome(value_of(record))
            except Exception as error:  # noqa: BLE001  # its class is gone, for example
                self._warn(f"the result of item {index} cannot be read back ({type(error).__name__}: {error})")
                to_run.append(index)
        return Recalled({index: outcomes[index] for index in sorted(outcomes)}, sorted(to_run))

    def failures(self) -> dict[int, Exception]:
        """The exceptions of the items whose last record is of a failure, by index, in their order.

        One that did not pickle is a `RuntimeError` with its text.

        Raises:
            ConfigError: the journal has a broken line.
            OSError: what was recorded in this run could not be written.
        """
        self._write()
        failed = [index for index, state in enumerate(self._states) if state & FAILED]
        errors = {index: error_of(record) for index, record in self._records(failed)}
        return {index: errors[index] for index in sorted(errors)}

    def finished(self, count: int) -> None:
        """Warn of what is recorded of items from number `count` on: this run was of fewer, and has not had them."""
        most = len(self._states)
        while most > count and not self._states[most - 1] & RECORDED:
            most -= 1
        if most > count:
            logger.warning(
                "the journal %s records items up to number %d, and this run had %d: it was of fewer items than another",
                self.path,
                most - 1,
                count,
            )

    def _records(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The last records of items, in the order of the file, so that it is read from its beginning to its end."""
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
                yield index, record

    # Recording

    def record(self, index: int, item: Any, outcome: Outcome) -> None:
        """Record what became of an item, with the next `flush`; or now, where a MiB waits for one.

        A result that neither JSON nor pickle holds is not recorded: a warning says so, once.

        Args:
            index: the item's number.
            item: the item. Where `recall` was asked for it, it counts as it was then, and this is not looked at.
            outcome: its result or its exception.

        Raises:
            ConfigError: the journal was written for another item of that number, or the item has no digest.
            OSError: what waits could not be written, and goes on waiting.
        """
        if self._file is None or self._file.is_closed:
            self._opened()
        if index >= len(self._states):
            self._make_room(index)
        state = self._states[index]
        if not state & CHECKED:
            own = self._digest(index, item)
            if state & RECORDED and own != self._digests[index]:
                raise self._of_others(index)
            self._digests[index] = own
            self._states[index] = state | CHECKED
        line = record_of(index, self._digests[index], outcome)
        if line is None:
            self._warn(f"neither JSON nor pickle holds the result of item {index}, a {type(outcome.value).__name__}")
            return
        self._waiting.append((index, DONE if outcome.error is None else FAILED, line))
        self._waiting_bytes += len(line)
        if self._waiting_bytes >= MOST_BUFFERED:
            self._write()

    def flush(self) -> None:
        """Write what waits, so that a crash of this process loses nothing of it; once a second, force it to the disk.

        Where nothing waits it costs little, and forces out what an earlier call has left: to be called at every tick.

        Raises:
            OSError: it could not be written, as on a full disk, and goes on waiting.
        """
        self._write()
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self._sync()

    def _write(self) -> None:
        file = self._opened()
        if not self._waiting:
            return
        if self._is_torn:
            file.cut(self._end)
        self._is_torn = True  # until all of it is there
        file.append(b"".join([line for _, _, line in self._waiting]))
        for index, state, line in self._waiting:
            self._offsets[index] = self._end
            self._states[index] = state | CHECKED
            self._end += len(line)
        self._waiting = []
        self._waiting_bytes = 0
        self._is_torn = self._is_synced = False

    def _sync(self) -> None:
        if not self._is_synced:
            self._opened().sync()
            self._is_synced = True
            self._synced_at = time.monotonic()

    # The parts of these

    def _opened(self) -> LockedFile:
        if self._file is None or self._file.is_closed:
            raise ValueError(f"the journal {self.path} is not open")
        return self._file

    def _make_room(self, index: int) -> None:
        if index >= MOST_ITEMS:
            raise ConfigError(
                f"the journal {self.path} has no room for item {index}: map at most {MOST_ITEMS:,} items with one"
            )
        if index >= len(self._states):
            more = index + AT_ONCE - len(self._states)
            self._offsets.frombytes(bytes(8 * more))
            self._digests.frombytes(bytes(8 * more))
            self._states.extend(bytes(more))

    def _digest(self, index: int, item: Any) -> int:
        """64 bits that are the same for the same item in every process."""
        kind = type(item)
        try:
            if kind is int or kind is str:  # in a third of the time
                text = b"i%d" % item if kind is int else b"s" + item.encode("utf-8", "surrogatepass")
                return int.from_bytes(blake2b(text, digest_size=8).digest())
            if isinstance(item, PurePath):  # whose pickle depends on how it was put together, and on the Python
                item = "path", os.fspath(item)
            return int(digest(freeze(item))[:16], 16)
        except Exception as error:
            raise ConfigError(
                f"the journal {self.path} cannot tell item {index}, a {kind.__qualname__}, from others: give its class "
                "an `__opero_key__` (a value, or a method that returns one), make it a frozen dataclass, or map what "
                "names it, such as its path or id"
            ) from error

    def _line_number(self, index: int) -> int:
        """The number of the line of an item's record."""
        lines, left = 1, self._offsets[index]
        with self._opened().reader() as reader:
            while left > 0 and (data := reader.read(min(left, 1 << 20))):
                left -= len(data)
                lines += data.count(b"\n")
        return lines

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("the journal %s: %s, so each run computes it; others like it go unsaid", self.path, what)

    def _broken(self, number: int) -> ConfigError:
        return ConfigError(
            f"the journal {self.path} is broken in line {number}: delete that line, and its item is computed again; or "
            "give another path"
        )

    def _of_others(self, index: int) -> ConfigError:
        return ConfigError(
            f"the journal {self.path} line {self._line_number(index)} belongs to other items: item {index} was another "
            "one then; nothing in it was overwritten; give another path, or delete the file to begin anew"
        )
