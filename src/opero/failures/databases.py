"""Errors of databases, by the codes that their drivers report."""

from __future__ import annotations

import re
from typing import Any

from opero.failures.kinds import Kind
from opero.failures.reading import read, text, whole
from opero.patterns import pattern

Verdict = tuple[Kind, str]

_T, _P, _D, _Q, _U = Kind.TRANSIENT, Kind.PERMANENT, Kind.DENIED, Kind.THROTTLED, Kind.UNKNOWN

SQLSTATES: dict[str, Kind] = {
    **dict.fromkeys(("08", "40", "53", "58", "25P03", "25006", "55006", "55P03", "57014", "HYT00", "HYT01"), _T),
    **dict.fromkeys(("57P01", "57P02", "57P03", "57P05", "XX000"), _T),
    **dict.fromkeys(("28", "42501"), _D),
    **dict.fromkeys(("0A", "21", "22", "23", "24", "25", "26", "2F", "34", "3D", "3F", "40002", "42", "44"), _P),
    **dict.fromkeys(("54", "08P01", "58P01", "58P02"), _P),
}
"""SQLSTATE or its class (the first two characters) → kind."""

MYSQL: dict[int, Kind] = {
    **dict.fromkeys((1040, 1053, 1129, 1158, 1159, 1160, 1161, 1205, 1213, 1290, 1317, 3024, 4031), _T),
    **dict.fromkeys((1203, 1226), _Q),
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1698, 1862), _D),
    **dict.fromkeys((1049, 1054, 1062, 1064, 1146, 1364, 1406, 1451, 1452), _P),
    **dict.fromkeys(range(2000, 2100), _T),  # of the client: connections
}

SQLITE: dict[str, Kind] = {
    **dict.fromkeys(("BUSY", "LOCKED", "PROTOCOL", "SCHEMA"), _T),
    **dict.fromkeys(
        ("ERROR", "PERM", "READONLY", "CORRUPT", "FULL", "CANTOPEN", "TOOBIG", "CONSTRAINT", "MISMATCH"), _P
    ),
    **dict.fromkeys(("MISUSE", "NOLFS", "AUTH", "RANGE", "NOTADB", "NOMEM"), _P),
}
"""The primary result code, without SQLITE_ → kind."""

MONGO: dict[int, Kind] = {
    **dict.fromkeys((6, 7, 24, 46, 50, 64, 89, 91, 112, 134, 189, 202, 251, 262, 317, 358, 384, 402), _T),
    **dict.fromkeys((9001, 10107, 10058, 11600, 11602, 13435, 13436), _T),
    **dict.fromkeys((13, 18, 8000), _D),
    **dict.fromkeys((16500, 462), _Q),
    **dict.fromkeys((2, 9, 14, 20, 26, 27, 48, 52, 53, 59, 66, 67, 72, 73, 85, 86, 121, 11000, 11001, 12582), _P),
}

REDIS = (
    (("LOADING", "BUSY ", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "READONLY", "NOREPLICAS"), _T),
    (("NOAUTH", "WRONGPASS", "NOPERM", "invalid password", "invalid username-password"), _D),
)
"""How messages of a server begin → kind. Their class is often a plain ResponseError."""

_SQLSTATE = pattern(r"[0-9A-Z]{5}", re.ASCII)
_REFUSED_LOGIN = pattern(r"authentication failed|no pg_hba\.conf entry|role \".*\" does not exist")


def of_sqlstate(code: object) -> Verdict | None:
    """Return what an SQLSTATE says; None if it is none, or says nothing."""
    code = text(code)
    if not _SQLSTATE.fullmatch(code):
        return None
    kind = SQLSTATES.get(code) or SQLSTATES.get(code[:2])
    return None if kind is None else (kind, f"SQLSTATE {code}")


def sqlstate_of(error: BaseException) -> Verdict | None:
    """Return what the SQLSTATE says that drivers such as psycopg, psycopg2 and asyncpg report as an attribute."""
    return of_sqlstate(read(error, "sqlstate")) or of_sqlstate(read(error, "pgcode"))


def of_database(error: BaseException) -> Verdict | None:
    """Return what the SQLSTATE says that a driver reports; pyodbc and pg8000 have it in the arguments."""
    found = sqlstate_of(error)
    if found is None and error.args:
        first = error.args[0]
        found = of_sqlstate(first.get("C") if type(first) is dict else first)
    return found


def of_psycopg(error: BaseException) -> Verdict | None:
    found = sqlstate_of(error)
    # A refused connection has no SQLSTATE, only the server's message.
    if found is None and "OperationalError" in (each.__name__ for each in type(error).__mro__):
        message = text(error.args[0]) if error.args else ""
        if _REFUSED_LOGIN.search(message):
            return _D, "authentication failed"
        if re.search(r'database ".*" does not exist', message):
            return _P, "database does not exist"
    return found


def of_mysql(error: BaseException) -> Verdict | None:
    number = whole(read(error, "errno"))
    if number is None and error.args:
        number = whole(error.args[0])
    kind = MYSQL.get(number) if number is not None else None
    return sqlstate_of(error) if kind is None else (kind, f"MySQL error {number}")


def of_sqlite(error: BaseException) -> Verdict | None:
    name = text(read(error, "sqlite_errorname"))
    if not name:
        # Errors that have been pickled by other libraries keep the message only.
        message = text(error.args[0]) if error.args else ""
        return (_T, "SQLite is locked") if re.search(r"(database|table).* is locked", message) else None
    kind = SQLITE.get(name.removeprefix("SQLITE_").partition("_")[0])
    return None if kind is None else (kind, name)


def of_pymongo(error: Any) -> Verdict | None:
    for label in ("TransientTransactionError", "RetryableWriteError", "RetryableError"):
        has_label = read(error, "has_error_label")
        if callable(has_label) and has_label(label) is True:
            return _T, label
    number = whole(read(error, "code"))
    kind = MONGO.get(number) if number is not None else None
    if kind is not None:
        return kind, f"MongoDB error {number}"
    return (_T, "MongoDB timeout") if read(error, "timeout") is True else None


def of_redis(error: BaseException) -> Verdict | None:
    message = text(error.args[0]) if error.args else ""
    for beginnings, kind in REDIS:
        if message.startswith(beginnings):
            return kind, f"Redis {message.split()[0]}" if message[0].isupper() else "Redis password"
    return None


def of_sqlalchemy(error: BaseException) -> Verdict | None:
    return (_T, "the connection was lost") if read(error, "connection_invalidated") is True else None
