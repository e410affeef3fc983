"""JSON that gives back values of many types exactly: objects with a key "$" say which type they stand for.

Reading makes values of these types and no others, so it is as safe as JSON.
"""

from __future__ import annotations

import functools
import json
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

TAG = "$"
PATHS = {each.__name__: each for each in (PurePosixPath, PureWindowsPath, type(Path()))}


others: dict[str, Callable[[Any, bool], Any]] = {}
"""Package → what writes the values of its types. `opero.cache.typed` fills it, and `READ`."""


class ForeignError(Exception):
    """A value is of a type that only its class can make again."""


def dumps(value: Any, *, enums: bool = False) -> bytes:
    """Return a value as JSON.

    Args:
        value: the value.
        enums: write members of enumerations as their values, which the reader makes members of again.

    Raises:
        ForeignError: it contains a value of another type.
        ValueError: it contains a number that is too long.
    """
    return json.dumps(encoded(value, enums), ensure_ascii=False).encode("utf-8", "surrogatepass")


def loads(data: bytes) -> Any:
    """Return the value in some JSON.

    Raises:
        Exception: it is not what `dumps` has written.
    """
    text = data.decode("utf-8", "surrogatepass")
    value, end = _decoder().raw_decode(text)
    if end != len(text):
        raise ValueError("something follows the value")
    return value


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_hook=_decoded)


def encoded(value: Any, enums: bool) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or kind is float or value is None:
        return value
    if kind is list:
        return [encoded(each, enums) for each in value]
    if kind is dict:
        if TAG not in value and all(type(name) is str for name in value):
            return {name: encoded(each, enums) for name, each in value.items()}
        return tagged("dict", _pairs(value, enums))
    write = WRITE.get(kind)
    if write is not None:
        return write(value, enums)
    if isinstance(value, Enum) and enums:
        return encoded(value.value, enums)
    if kind.__module__ and kind.__module__.partition(".")[0] in others:
        return others[kind.__module__.partition(".")[0]](value, enums)
    if kind.__name__ in PATHS and PATHS[kind.__name__] is kind:
        return tagged("path", [kind.__name__, str(value)])
    raise ForeignError(f"a value of type {kind.__name__}")


def tagged(name: str, content: Any) -> dict[str, Any]:
    """Return the JSON of a value of another type than JSON has."""
    return {TAG: name, "v": content}


def _items(value: Any, enums: bool) -> list[Any]:
    return [encoded(each, enums) for each in value]


def _pairs(value: Any, enums: bool) -> list[Any]:
    return [[encoded(key, enums), encoded(each, enums)] for key, each in value.items()]


def _time(name: str) -> Callable[[Any, bool], Any]:
    def write(value: Any, enums: bool) -> Any:
        zone = encoded(value.tzinfo, enums)
        return tagged(name, [value.replace(tzinfo=None).isoformat(), value.fold, zone])

    return write


def _zone(value: ZoneInfo, enums: bool) -> Any:
    if value.key is None:
        raise ForeignError("a time zone without a name")
    return tagged("zone", value.key)


def _timezone(value: timezone, enums: bool) -> Any:
    offset, name = value.utcoffset(None), value.tzname(None)
    return tagged("timezone", [encoded(offset, enums), name if timezone(offset).tzname(None) != name else None])


WRITE: dict[Any, Callable[[Any, bool], Any]] = {
    tuple: lambda value, enums: tagged("tuple", _items(value, enums)),
    set: lambda value, enums: tagged("set", _items(value, enums)),
    frozenset: lambda value, enums: tagged("frozenset", _items(value, enums)),
    deque: lambda value, enums: tagged("deque", [_items(value, enums), value.maxlen]),
    OrderedDict: lambda value, enums: tagged("OrderedDict", _pairs(value, enums)),
    Counter: lambda value, enums: tagged("Counter", _pairs(value, enums)),
    bytes: lambda value, enums: tagged("bytes", b64encode(value).decode()),
    bytearray: lambda value, enums: tagged("bytearray", b64encode(value).decode()),
    complex: lambda value, enums: tagged("complex", [value.real, value.imag]),
    Decimal: lambda value, enums: tagged("Decimal", str(value)),
    Fraction: lambda value, enums: tagged("Fraction", [value.numerator, value.denominator]),
    UUID: lambda value, enums: tagged("UUID", str(value)),
    date: lambda value, enums: tagged("date", value.isoformat()),
    datetime: _time("datetime"),
    time: _time("time"),
    timedelta: lambda value, enums: tagged("timedelta", [value.days, value.seconds, value.microseconds]),
    timezone: _timezone,
    ZoneInfo: _zone,
}


def _read_zone(content: Any) -> timezone:
    offset, name = content
    if name is None:
        return timezone(offset) if offset else UTC
    return timezone(offset, name)


READ: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": lambda content: deque(content[0], content[1]),
    "OrderedDict": OrderedDict,
    "Counter": lambda content: Counter(dict(content)),
    "bytes": lambda content: b64decode(content, validate=True),
    "bytearray": lambda content: bytearray(b64decode(content, validate=True)),
    "complex": lambda content: complex(*content),
    "Decimal": Decimal,
    "Fraction": lambda content: Fraction(*content),
    "UUID": UUID,
    "date": date.fromisoformat,
    "datetime": lambda content: datetime.fromisoformat(content[0]).replace(fold=content[1], tzinfo=content[2]),
    "time": lambda content: time.fromisoformat(content[0]).replace(fold=content[1], tzinfo=content[2]),
    "timedelta": lambda content: timedelta(*content),
    "timezone": _read_zone,
    "zone": ZoneInfo,
    "path": lambda content: PATHS[content[0]](content[1]),
}


def _decoded(found: dict[str, Any]) -> Any:
    name = found.get(TAG)
    if name is None:
        return found
    return READ[name](found["v"])
