"""The `disk` backend of dogpile.cache: bytes in one SQLite file, which threads and processes use at once."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
import weakref
from contextlib import closing, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dogpile.cache.api import NO_VALUE, BytesBackend

from opero.logs import logger

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["DiskBackend"]

FILE, LOCKS = "opero.sqlite3", "opero.locks"
TABLE = """
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value BLOB NOT NULL, expires
REAL); CREATE INDEX IF NOT EXISTS by_expiry ON entries (expires) WHERE expires IS NOT NULL;
"""
SET = "INSERT OR REPLACE INTO entries (key, value, expires) VALUES (?, ?, ?)"  # a new id: ids tell which is older
GET = "SELECT value FROM entries WHERE key = ? AND (expires IS NULL OR expires > ?)"
MOST_NAMES = 500
"""Values in one statement; SQLite takes 999 at least."""
PURGE_EVERY, PURGE_MOST = 64, 2000
PATIENCE = 5.0
"""Seconds for making a fresh file, which many processes may try at once."""
LAST = "\U0010ffff"


class DiskBackend(BytesBackend):
    """Keeps bytes in a file. Every write is a transaction: a process that dies in the midst of one leaves no half of
    it.

    Args:
        arguments: `directory`, made with mode 0700 where it is not there; `timeout`: seconds that an operation waits
            while other processes write. Default 1.

    Raises:
        OSError, sqlite3.Error: the directory or the file cannot be used.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.database = _Database.at(Path(arguments["directory"]), float(arguments.get("timeout", 1.0)))

    # dogpile's interface

    def get_serialized(self, key: str) -> Any:
        row = self.database.run(lambda connection: connection.execute(GET, (key, time.time())).fetchone())
        return NO_VALUE if row is None else row[0]

    def get_serialized_multi(self, keys: Iterable[str]) -> list[Any]:
        names, now = list(keys), time.time()

        def read(connection: sqlite3.Connection) -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            for start in range(0, len(names), MOST_NAMES):
                chunk = names[start : start + MOST_NAMES]
                marks = ",".join("?" * len(chunk))
                found |= connection.execute(
                    f"SELECT key, value FROM entries WHERE key IN ({marks}) AND (expires IS NULL OR expires > ?)",
                    (*chunk, now),
                ).fetchall()
            return found

        found = self.database.run(read)
        return [found.get(name, NO_VALUE) for name in names]

    def set_serialized(self, key: str, value: bytes) -> None:
        self.set_expiring(key, value, None)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        self.set_expiring_multi((key, value, None) for key, value in mapping.items())

    def delete(self, key: str) -> None:
        self.delete_multi([key])

    def delete_multi(self, keys: Iterable[str]) -> None:
        rows = [(key,) for key in keys]
        self.database.write(lambda connection: connection.executemany("DELETE FROM entries WHERE key = ?", rows))

    def get_mutex(self, key: str) -> Any:
        """Excludes other processes that compute the key; the kernel releases it when its holder dies."""
        return None if fcntl is None else _Mutex(self.database.locks, key)

    # Beyond it

    def set_expiring(self, key: str, value: bytes, seconds: float | None) -> None:
        """Keep bytes, for so many seconds; None: for ever."""
        row = (key, value, None if seconds is None else time.time() + seconds)
        self.database.run(lambda connection: connection.execute(SET, row).rowcount)  # one statement is a transaction
        self._purge_at_times()

    def set_expiring_multi(self, items: Iterable[tuple[str, bytes, float | None]]) -> None:
        """The same for many, all or none of them."""
        now = time.time()
        rows = [(key, value, None if seconds is None else now + seconds) for key, value, seconds in items]
        self.database.write(lambda connection: connection.executemany(SET, rows))
        self._purge_at_times()

    def purge(self) -> int:
        """Delete everything whose time has passed; how many."""
        return self._purge(-1)

    def clear_prefix(self, prefix: str) -> int:
        """Delete every key that begins so; how many."""
        return self._count_changed("DELETE FROM entries WHERE key >= ? AND key < ?", _range(prefix))

    def count_prefix(self, prefix: str) -> int:
        """How many keys begin so."""
        statement = "SELECT count(*) FROM entries WHERE key >= ? AND key < ? AND (expires IS NULL OR expires > ?)"
        values = (*_range(prefix), time.time())
        count: int = self.database.run(lambda connection: connection.execute(statement, values).fetchone())[0]
        return count

    def trim_prefix(self, prefix: str, most: int) -> int:
        """Delete the oldest keys that begin so until at most `most` are left, expired ones first; how many."""
        start, end = _range(prefix)

        def trim(connection: sqlite3.Connection) -> int:
            within = "FROM entries WHERE key >= ? AND key < ?"
            count: int = connection.execute(f"SELECT count(*) {within}", (start, end)).fetchone()[0]
            if count <= most:
                return 0
            chosen = f"SELECT id {within} ORDER BY coalesce(expires <= ?, 0) DESC, id LIMIT ?"
            values = (start, end, time.time(), count - most)
            return connection.execute(f"DELETE FROM entries WHERE id IN ({chosen})", values).rowcount

        trimmed: int = self.database.write(trim)
        return trimmed

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.database.close()

    def _purge_at_times(self) -> None:
        if self.database.is_purge_due():
            with suppress(sqlite3.OperationalError):  # what was to be written is written; this can be done later
                self._purge(PURGE_MOST)

    def _purge(self, most: int) -> int:
        statement = (
            "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)"
        )
        return self._count_changed(statement, (time.time(), most))

    def _count_changed(self, statement: str, values: tuple[Any, ...]) -> int:
        changed: int = self.database.write(lambda connection: connection.execute(statement, values).rowcount)
        return changed


def _range(prefix: str) -> tuple[str, str | bytes]:
    """The first key that begins with a prefix, and the first after all of those, as SQLite orders text."""
    stripped = prefix.rstrip(LAST)
    if not stripped:
        return prefix, b""  # any blob comes after all text
    after = ord(stripped[-1]) + 1
    return prefix, stripped[:-1] + chr(0xE000 if after == 0xD800 else after)  # surrogates are no text


class _Database:
    """One file, and its connections: each is used by one thread at a time, and by no process but the one that opened
    it.

    Backends for the same file share it. A fork waits for operations under way, and closes all connections: SQLite keeps
    its locks by process, so a child that inherits a connection takes the parent's locks for its own, and loses what it
    writes when the parent closes the file.
    """

    open: ClassVar[weakref.WeakValueDictionary[tuple[str, float], _Database]] = weakref.WeakValueDictionary()
    lock = threading.RLock()  # as whoever forks may use a cache in a hook of its own
    """Held while a database is opened, and while the process forks."""
    forker: ClassVar[int | None] = None
    """The thread that forks."""

    @classmethod
    def at(cls, directory: Path, timeout: float) -> _Database:
        with cls.lock:
            key = (os.path.abspath(directory), timeout)
            found = cls.open.get(key)
            if found is None:
                found = cls.open[key] = cls(directory, timeout)
            return found

    def __init__(self, directory: Path, timeout: float) -> None:
        _make_directory(directory)
        self.path = directory / FILE
        self.timeout = timeout
        self.locks = _Locks.at(directory / LOCKS)
        self._idle: list[sqlite3.Connection] = []
        self._used: list[None] = []  # an item for each operation under way; append and pop are atomic
        self._writes = 0
        self._generation = 0
        self._close = weakref.finalize(self, _close_all, self._idle)
        patience = max(timeout, PATIENCE)
        try:
            self._idle.append(self._connect(patience))
        except sqlite3.DatabaseError as error:
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "No permission to write there", str(directory)) from error
            if not _is_damage(error):
                raise
            self._set_aside(error)
            self._idle.append(self._connect(patience))

    def run(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        """The result of an operation on a connection; tried again, on a new file, where this one is damaged."""
        self._used.append(None)
        try:
            # The fork looks at the line above only after it is known here.
            while (forker := _Database.forker) is not None and forker != threading.get_ident():
                self._used.pop()
                with _Database.lock:
                    self._used.append(None)
            try:
                return self._run(operation)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._renew()
                self._set_aside(error)
            return self._run(operation)
        finally:
            self._used.pop()

    def write(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        """The same in a transaction."""

        def transaction(connection: sqlite3.Connection) -> Any:
            connection.execute("BEGIN IMMEDIATE")  # a failure closes the connection, and so takes all of it back
            result = operation(connection)
            connection.execute("COMMIT")
            return result.rowcount if isinstance(result, sqlite3.Cursor) else result

        return self.run(transaction)

    def is_purge_due(self) -> bool:
        self._writes += 1
        return self._writes % PURGE_EVERY == 0

    def close(self) -> None:
        _close_all(self._idle)

    def before_fork(self, until: float) -> None:
        while self._used and time.monotonic() < until:
            time.sleep(0.0005)
        self.close()

    def after_fork(self) -> None:
        """SQLite forbids to use, and even to close, a connection in another process than its own."""
        _inherited.extend(self._idle)
        self._idle.clear()
        self._used.clear()

    def _renew(self) -> None:
        """Use no connection any more that is open by now: the file may be another."""
        self._generation += 1
        self.close()

    def _run(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        generation = self._generation
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect(self.timeout)
        try:
            result = operation(connection)
        except BaseException:  # an interruption, too: who knows what state it is in
            connection.close()
            raise
        if generation == self._generation:
            self._idle.append(connection)
        else:
            connection.close()
        return result

    def _connect(self, patience: float) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=patience, isolation_level=None, check_same_thread=False)
        until = time.monotonic() + patience
        while True:
            try:
                # Whoever is not the first finds the file in this mode and the table there, and need not lock it.
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                if connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'by_expiry'").fetchone()[0] == 0:
                    connection.executescript(TABLE)
                connection.execute(f"PRAGMA busy_timeout={round(self.timeout * 1000)}")
                return connection
            except sqlite3.OperationalError as error:  # changing the mode does not wait for others
                if "locked" not in str(error) or time.monotonic() > until:
                    connection.close()
                    raise
                time.sleep(0.01)
            except BaseException:
                connection.close()
                raise

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Make way for a new file, unless another process or thread has done so; a cache can be filled anew."""
        mutex = _Mutex(self.locks, "the file itself") if fcntl is not None else None
        if mutex is not None:
            mutex.acquire()
        try:
            if self._is_whole():
                return
            self._renew()
            for suffix in ("-wal", "-shm", ""):  # the file last: a new one must never meet the old one's log
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{self.path}.damaged{suffix}")
            logger.warning(
                "the cache's file %s was damaged (%s); it is set aside as %s.damaged", self.path, error, FILE
            )
        finally:
            if mutex is not None:
                mutex.release()

    def _is_whole(self) -> bool:
        try:
            with closing(self._connect(self.timeout)) as connection:
                found: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            return False
        return found == "ok"


def _make_directory(directory: Path) -> None:
    for each in reversed([directory, *directory.parents]):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorname", "").partition("_")[2].partition("_")[0] in ("CORRUPT", "NOTADB")


def _close_all(connections: list[sqlite3.Connection]) -> None:
    while connections:
        with suppress(IndexError):
            connections.pop().close()


_inherited: list[sqlite3.Connection] = []
"""Connections of the process that this one was forked from. They are never closed here."""


def _before_fork() -> None:
    _Database.lock.acquire()
    _Database.forker = threading.get_ident()
    until = time.monotonic() + PATIENCE  # an operation that this very thread was interrupted in would never end
    for database in list(_Database.open.values()):
        database.before_fork(until)


def _after_fork_in_parent() -> None:
    _Database.forker = None
    _Database.lock.release()


def _after_fork_in_child() -> None:
    _Database.lock = threading.RLock()
    _Database.forker = None
    for database in list(_Database.open.values()):
        database.after_fork()
    for locks in list(_Locks.open.values()):
        locks.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class _Locks:
    """A file whose bytes stand for keys: whoever has locked a byte computes that key.

    Such locks belong to a process, and closing any descriptor of the file drops them all: a process has one for each
    file, whatever the name it goes by, and never closes it.
    """

    open: ClassVar[dict[str, _Locks]] = {}

    @classmethod
    def at(cls, path: Path) -> _Locks:
        return cls.open.setdefault(real := os.path.realpath(path), cls(real))

    def __init__(self, path: str) -> None:
        self.path = path
        self.holders: dict[int, _Mutex] = {}
        self.lock = threading.Lock()
        self._file: int | None = None

    def take(self, mutex: _Mutex) -> bool:
        with self.lock:
            if mutex.offset in self.holders:
                return False
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, mutex.offset)
            except (BlockingIOError, PermissionError):
                return False
            self.holders[mutex.offset] = mutex
            return True

    def give_back(self, mutex: _Mutex) -> None:
        with self.lock:
            if self.holders.get(mutex.offset) is mutex and self._file is not None:
                del self.holders[mutex.offset]
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, mutex.offset)

    def after_fork(self) -> None:
        """The parent's locks stay with the parent, and its descriptor may be closed here: no lock is this process's."""
        inherited = self._file
        self.__init__(self.path)  # type: ignore[misc]
        if inherited is not None:
            os.close(inherited)


class _Mutex:
    """Keeps other processes, and other threads of this one, from computing a key."""

    def __init__(self, locks: _Locks, key: str) -> None:
        self.locks = locks
        self.offset = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 2

    def acquire(self, wait: bool = True) -> bool:  # dogpile's own
        while not (taken := self.locks.take(self)) and wait:
            time.sleep(0.01)
        return taken

    def release(self) -> None:
        self.locks.give_back(self)

    def locked(self) -> bool:
        return self.locks.holders.get(self.offset) is self
