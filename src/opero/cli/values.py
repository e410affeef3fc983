"""Converts the results of functions to plain data for JSON."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

MAX_INT_BITS = 2000
"""Larger integers are written as hexadecimal text: Python may be configured to refuse to parse them as decimals."""


def jsonable(value: Any) -> Any:
    """Return a function's result as plain data: models and dataclasses as mappings, unknown types as their repr."""
    try:
        return _jsonable(value)
    except Exception:  # noqa: BLE001  # an error in a user's type, or too deep nesting
        return _repr(value)


def _jsonable(value: Any) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, enum.Enum):
        return _jsonable(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= MAX_INT_BITS else hex(value)
    if isinstance(value, Mapping):
        found = {_key(name): each for name, each in value.items()}
        if len(found) < len(value):  # keys such as 1 and "1" would collide
            return _repr(value)
        return {name: _jsonable(each) for name, each in found.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "backslashreplace")
    for method in ("model_dump", "isoformat", "tolist"):  # pydantic models; dates and times; numpy arrays
        if callable(getattr(kind, method, None)):
            return _jsonable(value.model_dump(mode="json") if method == "model_dump" else getattr(value, method)())
    if kind.__module__ in ("decimal", "uuid", "pathlib", "pathlib._local", "fractions", "ipaddress"):
        return str(value)
    return _repr(value)


def _key(name: Any) -> str:
    if isinstance(name, str):
        return str.__str__(name)
    if name is None or isinstance(name, bool):
        return {None: "null", True: "true", False: "false"}[name]
    return str(name)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  # an error in the user's own repr
        return f"<{type(value).__name__}>"
