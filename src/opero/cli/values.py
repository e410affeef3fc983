"""Converts values to plain data for JSON and to YAML text, with secrets masked."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.config.fields import is_hidden, is_secret
from opero.config.report import MASK, SECRET_WORD, without_passwords
from opero.policies.policy import KINDS
from opero.policies.types import dotted_name

if TYPE_CHECKING:
    from opero.config.sources import Leaf, Source

MAX_INT_BITS = 2000
"""Larger integers are written as hexadecimal text: Python may be configured to refuse to parse them as decimals."""

__all__ = ["jsonable", "leaf_data", "leaf_text", "plain_of", "source_data", "text_of_value", "yaml_scalar"]


def plain_of(path: str, value: Any) -> Any:
    """Return an option's value as plain data, with functions and classes by name and secrets masked.

    Args:
        path: the policy and its field, such as "cache.url".
        value: the configured value.
    """
    kind, _, field = path.partition(".")
    if value is None:
        return None
    if field and is_secret(kind, field):
        return MASK
    if field and isinstance(value, Mapping) and KINDS[kind].model_fields[field].annotation is not Any:
        hides_all = is_hidden(kind, field)  # such as the arguments of a cache backend
        return {str(name): MASK if hides_all else _plain(each) for name, each in value.items()}
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, Mapping):
        return {str(name): MASK if SECRET_WORD.search(str(name)) else _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if hasattr(value, "get_secret_value"):
        return MASK
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(mode="json"))
    try:
        return dotted_name(value)
    except ValueError:
        return without_passwords(repr(value))


def text_of_value(path: str, value: Any) -> str:
    """Return an option's value as one line of YAML; printable text is not quoted."""
    plain = plain_of(path, value)
    if isinstance(plain, str):
        return plain if plain and plain.isprintable() else repr(plain)
    return yaml_scalar(plain)


def yaml_scalar(plain: Any) -> str:
    """Return plain data as one line of YAML."""
    import yaml

    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False)
    return str(text).removesuffix("\n").removesuffix("\n...").rstrip()


def source_data(source: Source) -> dict[str, Any]:
    """Return a source as plain data."""
    return {"name": source.name, "line": source.line, "column": source.column, "by": source.by or None}


def leaf_data(path: str, leaf: Leaf) -> dict[str, Any]:
    """Return an option's value, its source and the values that it shadows as plain data."""
    first, *rest = [
        {
            "value": plain_of(path, each.value),
            "removed": each.removed,
            "source": source_data(each.source),
            "section": each.section or None,
        }
        for each in leaf.chain()
    ]
    return {"option": path, **first, "shadows": rest}


def leaf_text(path: str, leaf: Leaf) -> str:
    """Return an option's value as one line of text, which also shows that it was removed."""
    return "removed (null)" if leaf.removed else text_of_value(path, leaf.value)


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
