"""Reads attributes of objects that opero does not know, without ever raising."""

from __future__ import annotations

from typing import Any


def read(holder: object, name: str) -> Any:
    """Return an attribute, or None if it is missing or raises."""
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001  # properties of foreign classes may raise anything
        return None


def text(value: object) -> str:
    """Return a string as it is, and anything else as ""."""
    return value if isinstance(value, str) else ""


def whole(value: object) -> int | None:
    """Return an integer as it is, and anything else as None: mocks, for example, convert to 1."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def lookup(mapping: object, *path: str) -> Any:
    """Return a value in nested dictionaries, or None."""
    for name in path:
        if not isinstance(mapping, dict):
            return None
        mapping = mapping.get(name)
    return mapping


def words(listed: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(listed.split())


def family_of(module: object) -> str:
    """Return the client that a module belongs to: its top-level package; forks count as the client that they follow."""
    root = text(module).partition(".")[0]
    return ALIASES.get(root, root)


ALIASES = {
    "aiobotocore": "botocore",
    "boto3": "botocore",
    "curl_cffi": "requests",
    "groq": "openai",
    "httpcore": "httpx",
    "httpcore2": "httpx",
    "httpx2": "httpx",
    "MySQLdb": "pymysql",
    "mysql": "pymysql",
    "asyncmy": "pymysql",
    "niquests": "requests",
    "psycopg2": "psycopg",
    "valkey": "redis",
}
"""Packages whose exceptions have the names and attributes of another's."""
