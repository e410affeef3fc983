"""The `disk` backend of dogpile.cache: bytes in one SQLite file, which threads and processes use at once."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogpile.cache.api import NO_VALUE, BytesBackend

from opero.cache.database import Database
from opero.runtime.byte_locks import ARE_THERE, Mutex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["DiskBackend"]

SET = "INSERT OR REPLACE INTO entries (key, value, expires) VALUES (?, ?, ?)"  # a new id: ids tell which is older
GET = "SELECT value FROM entries WHERE key = ? AND (expires IS NULL OR expires > ?)"
MOST_NAMES = 500
"""Values in one statement; SQLite takes 999 at least."""
PURGE_EVERY, PURGE_MOST = 64, 2000
LAST = "\U0010ffff"


class DiskBackend(BytesBackend):
    """Keeps bytes in a file. Every write is a transaction: a process that dies in one leaves no half of it.

    Args:
        arguments: `directory`, made with mode 0700 where it is not there; `timeout`: seconds that an operation waits
            while other processes write. Default 1.

    Raises:
        OSError, sqlite3.Error: the directory or the file cannot be used.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.database = Database.at(Path(arguments["directory"]), float(arguments.get("timeout", 1.0)))
        self._writes = 0

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
        return Mutex(self.database.locks, key) if ARE_THERE else None

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
        self._writes += 1
        if self._writes % PURGE_EVERY == 0:
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
