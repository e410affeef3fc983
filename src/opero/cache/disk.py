"""The `disk` backend of dogpile.cache: an SQLite file that threads and processes share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dogpile.cache.api import NO_VALUE, BytesBackend

from opero.cache.database import Database
from opero.runtime.byte_locks import Mutex
from opero.runtime.file_locks import HAS_LOCKS

SET = "INSERT OR REPLACE INTO entries (key, value, expires) VALUES (?, ?, ?)"  # assigns a new id: ids order by age
GET = "SELECT value FROM entries WHERE key = ? AND (expires IS NULL OR expires > ?)"
MAX_PARAMETERS = 500
"""Parameters of one statement; SQLite allows at least 999."""
PURGE_EVERY, PURGE_LIMIT = 64, 2000
LOOK_EVERY = 1 << 20
"""Bytes written between looks at the size of the write-ahead log."""
LAST = "\U0010ffff"


class DiskBackend(BytesBackend):
    """Stores bytes in an SQLite file. Every write is a transaction, so a process that dies leaves no partial write.

    Args:
        arguments: `directory`: the file's directory, created with mode 0700 if it is missing; `timeout`: seconds to
            wait while another process writes. Default: 1; `check`: called before the file is opened, and raises an
            exception where it must not be.

    The file is opened by the first operation, which raises an `OSError` or `sqlite3.Error` if that is not possible.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.database = Database.at(Path(arguments["directory"]), float(arguments.get("timeout", 1.0)))
        if "check" in arguments:
            self.database.checks.append(arguments["check"])
        self._writes = self._bytes = 0

    # The interface of dogpile.cache

    def get_serialized(self, key: str) -> Any:
        row = self.database.run(lambda connection: connection.execute(GET, (key, time.time())).fetchone())
        return NO_VALUE if row is None else row[0]

    def get_serialized_multi(self, keys: Iterable[str]) -> list[Any]:
        names, now = list(keys), time.time()

        def read(connection: sqlite3.Connection) -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            for start in range(0, len(names), MAX_PARAMETERS):
                chunk = names[start : start + MAX_PARAMETERS]
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
        """Return a mutex between processes for the key, which the kernel releases if its holder dies."""
        return Mutex(self.database.locks, key) if HAS_LOCKS else None

    # Extensions

    def set_expiring(self, key: str, value: bytes, seconds: float | None) -> None:
        """Store a value that expires after `seconds`; None for never."""
        row = (key, value, None if seconds is None else time.time() + seconds)
        # One statement is a transaction.
        self.database.run(lambda connection: connection.execute(SET, row).rowcount, writes=True)
        self._purge_sometimes(len(value))

    def set_expiring_multi(self, items: Iterable[tuple[str, bytes, float | None]]) -> None:
        """Store many values in one transaction."""
        now = time.time()
        rows = [(key, value, None if seconds is None else now + seconds) for key, value, seconds in items]
        self.database.write(lambda connection: connection.executemany(SET, rows))
        self._purge_sometimes(sum(len(value) for _, value, _ in rows))

    def purge(self) -> int:
        """Delete all expired values, and return their number."""
        return self._purge(-1)

    def clear_prefix(self, prefix: str) -> int:
        """Delete every key with this prefix, and return their number."""
        return self._count_changed("DELETE FROM entries WHERE key >= ? AND key < ?", _range(prefix))

    def count_prefix(self, prefix: str) -> int:
        """Return the number of keys with this prefix."""
        statement = "SELECT count(*) FROM entries WHERE key >= ? AND key < ? AND (expires IS NULL OR expires > ?)"
        values = (*_range(prefix), time.time())
        count: int = self.database.run(lambda connection: connection.execute(statement, values).fetchone())[0]
        return count

    def trim_prefix(self, prefix: str, max_size: int) -> int:
        """Delete expired and then the oldest keys with this prefix until `max_size` are left; return the number."""
        start, end = _range(prefix)

        def trim(connection: sqlite3.Connection) -> int:
            within = "FROM entries WHERE key >= ? AND key < ?"
            count: int = connection.execute(f"SELECT count(*) {within}", (start, end)).fetchone()[0]
            if count <= max_size:
                return 0
            chosen = f"SELECT id {within} ORDER BY coalesce(expires <= ?, 0) DESC, id LIMIT ?"
            values = (start, end, time.time(), count - max_size)
            return connection.execute(f"DELETE FROM entries WHERE id IN ({chosen})", values).rowcount

        trimmed: int = self.database.write(trim)
        return trimmed

    def close(self) -> None:
        """Close the connections that are not in use."""
        self.database.close()

    def _purge_sometimes(self, size: int) -> None:
        self._writes += 1
        self._bytes += size
        if self._bytes >= LOOK_EVERY or self._writes % PURGE_EVERY == 0:
            self._bytes = 0
            self.database.bound_log()
        if self._writes % PURGE_EVERY == 0:
            with suppress(sqlite3.OperationalError):  # the write itself has succeeded; a later one purges
                self._purge(PURGE_LIMIT)

    def _purge(self, limit: int) -> int:
        statement = (
            "DELETE FROM entries WHERE id IN (SELECT id FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)"
        )
        return self._count_changed(statement, (time.time(), limit))

    def _count_changed(self, statement: str, values: tuple[Any, ...]) -> int:
        changed: int = self.database.write(lambda connection: connection.execute(statement, values).rowcount)
        return changed


def _range(prefix: str) -> tuple[str, str | bytes]:
    """Return the half-open range of keys with a prefix, in SQLite's order of text."""
    stripped = prefix.rstrip(LAST)
    if not stripped:
        return prefix, b""  # SQLite orders blobs after all text
    after = ord(stripped[-1]) + 1
    return prefix, stripped[:-1] + chr(0xE000 if after == 0xD800 else after)  # skip surrogates: they are not text
