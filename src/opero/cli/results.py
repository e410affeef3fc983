"""The results of a map, a JSON line each."""

from __future__ import annotations

import json
import signal
import stat
import threading
from contextlib import contextmanager
from os.path import realpath, samefile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from opero.cli.exits import UsageError
from opero.cli.values import jsonable
from opero.config.report import without_passwords
from opero.errors import OperoError, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Results", "error_data", "is_same_file"]

A_MOMENT = 0.005
"""Seconds after which a Ctrl-C that came while something was written comes again."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode


def error_data(error: BaseException) -> dict[str, Any]:
    """What went wrong, as plain data, passwords in URLs masked; of one of opero's the attempt's own is the cause."""
    data: dict[str, Any] = {"type": type(error).__name__, "message": without_passwords(text_of(error))}
    if isinstance(error, OperoError) and error.__cause__ is not None:
        data["cause"] = error_data(error.__cause__)
    return data


def is_same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file, which need not exist yet."""
    return realpath(one) == realpath(other) or (Path(one).exists() and Path(other).exists() and samefile(one, other))


class Results:
    """Writes what becomes of items. A file is begun anew when the first of them is known, and not before.

    Args:
        path: the file; "-" for stdout.
        out: stdout.
        skips: items that failed are left out.

    Attributes:
        succeeded, failed: how many items.
        keys: index → what stands in the line beside the index, of items that are not written yet.
    """

    def __init__(self, path: str, out: TextIO, *, skips: bool) -> None:
        self.path = path
        self.out = out
        self.skips = skips
        self.succeeded = 0
        self.failed = 0
        self.keys: dict[int, Any] | None = None
        self._file: IO[bytes] | None = None
        self._is_writing = False

    @property
    def is_stdout(self) -> bool:
        return self.path == "-"

    @property
    def is_kept(self) -> bool:
        """Whether it is a file of which something will be left: no pipe, and not /dev/null."""
        if self.is_stdout:
            return False
        try:
            return stat.S_ISREG(Path(self.path).stat().st_mode)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or error}") from error

    @property
    def is_there(self) -> bool:
        """Whether the file has something in it already."""
        return self.is_kept and Path(self.path).exists() and Path(self.path).stat().st_size > 0

    def is_file(self, path: str) -> bool:
        """Whether that is the same file, though neither may exist yet."""
        return not self.is_stdout and is_same_file(path, self.path)

    def check(self) -> None:
        """Find out before the first item whether the file can be written.

        Raises:
            UsageError: it cannot.
        """
        if not self.is_stdout:
            try:
                open(self.path, "ab").close()
            except OSError as error:
                raise UsageError(f"{self.path}: {error.strerror or error}; give another file with -o") from error

    def write(self, outcomes: Iterable[tuple[int, Any, bool]]) -> None:
        """Write what became of some items, at once.

        Args:
            outcomes: of each item its index, its result or exception, and whether it failed.
        """
        lines = []
        self._is_writing = True
        try:
            for index, value, has_failed in outcomes:
                line: dict[str, Any] = {"index": index}
                if self.keys is not None:
                    line["key"] = self.keys.pop(index, None)
                if has_failed:
                    self.failed += 1
                    line["error"] = error_data(value)
                else:
                    self.succeeded += 1
                    line["result"] = jsonable(value)
                if not (has_failed and self.skips):
                    lines.append(f"{_encode(line)}\n".encode("utf-8", "backslashreplace"))
            if lines:
                file = self.begin()
                file.write(b"".join(lines))
                file.flush()
        finally:
            self._is_writing = False

    def begin(self) -> IO[bytes]:
        """The file, begun anew unless it is open."""
        if self._file is None:
            self._file = self.out.buffer if self.is_stdout else open(self.path, "wb")  # noqa: SIM115
        return self._file

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None and not self.is_stdout:
            self._file.close()

    @contextmanager
    def in_one_piece(self) -> Iterator[None]:
        """Have a Ctrl-C wait for what is being written."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: Any) -> None:
            if self._is_writing:
                # Not just afterwards: other results that came with these are still to be written.
                again = threading.Timer(A_MOMENT, signal.pthread_kill, (threading.main_thread().ident, number))
                again.daemon = True
                again.start()
            elif callable(before):
                before(number, frame)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
