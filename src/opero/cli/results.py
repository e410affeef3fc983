"""Writes the results of a map as JSON lines."""

from __future__ import annotations

import json
import signal
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os.path import realpath, samefile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from opero.cli.exits import InvalidItemError, UsageError
from opero.cli.terminal import json_text
from opero.cli.values import jsonable
from opero.errors import AllFailedError, MapError, OperoError, message_of, text_of, without_passwords
from opero.failures import kind_of

if TYPE_CHECKING:
    from opero.cli.tables import Table

RETRY_INTERRUPT = 0.005
"""Seconds after which a Ctrl-C that arrived during a write is raised again."""

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)


def _encode(value: Any) -> str:
    return json_text(_encoder.encode(value))


def error_data(error: BaseException) -> dict[str, Any]:
    """Return an exception as plain data, with passwords in URLs masked, and the cause of an `OperoError`.

    Of a `MapError`, that is the exception of the first item that failed.
    """
    data: dict[str, Any] = {"type": type(error).__name__, "message": without_passwords(text_of(error))}
    if isinstance(error, OperoError):
        failed = error.failures if isinstance(error, MapError) else ()
        cause = failed[0].exception if failed else error.__cause__
        if cause is not None:
            data["cause"] = error_data(cause)
    return data


def is_same_file(one: str, other: str) -> bool:
    """Return whether two paths lead to the same file, which need not exist."""
    return realpath(one) == realpath(other) or (Path(one).exists() and Path(other).exists() and samefile(one, other))


class Results:
    """Writes the results of items as they finish. An existing file is overwritten at the first result, not before.

    Args:
        path: the path of the file; "-" for stdout.
        out: the stream of stdout.
        skips: whether failed items are left out.
        table: makes rows of a table of the results. Default: each is a line of JSON.

    Attributes:
        succeeded: the number of items that succeeded.
        failed: the number of items that failed.
        invalid: how many of these are lines of the file of items that are not valid.
        failures: kind → type of exception → how many of the others.
        keys: index → key, for items that are not written yet; None if lines have no key.
    """

    def __init__(self, path: str, out: TextIO, *, skips: bool, table: Table | None = None) -> None:
        self.path = path
        self.out = out
        self.skips = skips
        self.succeeded = 0
        self.failed = 0
        self.invalid = 0
        self.failures: dict[str, Counter[str]] = {}
        self.table = table
        self.kind_of: Callable[[BaseException], str] = kind_of
        self.keys: dict[int, Any] | None = None
        self._file: IO[bytes] | None = None
        self._is_writing = False

    @property
    def is_stdout(self) -> bool:
        return self.path == "-"

    @property
    def is_regular_file(self) -> bool:
        """Whether the output is a regular file or a new one, rather than stdout, a pipe or /dev/null."""
        if self.is_stdout:
            return False
        try:
            return stat.S_ISREG(Path(self.path).stat().st_mode)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror or message_of(error)}") from error

    @property
    def has_content(self) -> bool:
        """Whether the file exists and is not empty."""
        return self.is_regular_file and Path(self.path).exists() and Path(self.path).stat().st_size > 0

    def is_file(self, path: str) -> bool:
        """Return whether the output is the file at this path."""
        return not self.is_stdout and is_same_file(path, self.path)

    def check(self) -> None:
        """Check that the file can be written, before the first item runs.

        Raises:
            UsageError: it cannot be written.
        """
        if not self.is_stdout:
            try:
                open(self.path, "ab").close()
            except OSError as error:
                raise UsageError(
                    f"{self.path}: {error.strerror or message_of(error)}; use another file for -o"
                ) from error

    def write(self, outcomes: Iterable[tuple[int, Any, bool]]) -> None:
        """Write the lines of some items at once.

        Args:
            outcomes: the index of each item, its result or exception, and whether it failed.
        """
        lines: list[dict[str, Any]] = []
        self._is_writing = True
        try:
            for index, value, has_failed in outcomes:
                line: dict[str, Any] = {"index": index}
                if self.keys is not None:
                    line["key"] = self.keys.pop(index, None)
                if has_failed:
                    self._count(value)
                    line["error"] = error_data(value)
                else:
                    self.succeeded += 1
                    line["result"] = jsonable(value)
                if not (has_failed and self.skips):
                    lines.append(line)
            if lines:
                table = self.table
                self._put("".join([f"{_encode(line)}\n" for line in lines]) if table is None else table.rows(lines))
        finally:
            self._is_writing = False

    def finish(self) -> None:
        """Write what is left; without any result, the file is empty, or has a header alone."""
        self._put("" if self.table is None else self.table.rest())

    def write_held(self) -> None:
        """Write the rows that wait for the first result."""
        if self.table is not None and self.table.held:
            self._put(self.table.rest())

    def _put(self, text: str) -> None:
        file = self.begin()
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()

    def _count(self, error: BaseException) -> None:
        self.failed += 1
        if isinstance(error, InvalidItemError):
            self.invalid += 1
            return
        while isinstance(error, AllFailedError) and error.errors:
            error = error.errors[-1]
        self.failures.setdefault(self.kind_of(error), Counter())[type(error).__name__] += 1

    def begin(self) -> IO[bytes]:
        """Return the open file; the first call empties it."""
        if self._file is None:
            self._file = self.out.buffer if self.is_stdout else open(self.path, "wb")  # noqa: SIM115
        return self._file

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None and not self.is_stdout:
            self._file.close()

    @contextmanager
    def delaying_interrupts(self) -> Iterator[None]:
        """Delay a Ctrl-C until the current write has finished, so that no line is cut off."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number: int, frame: Any) -> None:
            if self._is_writing:
                # Not directly after the write, as other results that arrived with these are still to be written.
                again = threading.Timer(RETRY_INTERRUPT, signal.pthread_kill, (threading.main_thread().ident, number))
                again.daemon = True
                again.start()
            elif callable(before):
                before(number, frame)

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
