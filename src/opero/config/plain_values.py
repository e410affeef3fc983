"""Configured values as plain data for JSON and as YAML text, with secrets masked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opero.config.fields import is_hidden, is_secret
from opero.config.report import SECRET_WORD
from opero.policies.names import dotted_name
from opero.policies.policy import KINDS
from opero.problems import MASK, without_passwords

if TYPE_CHECKING:
    from opero.config.sources import Leaf, Source


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
        return without_passwords(str.__str__(value))  # a kind of failure as text
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
