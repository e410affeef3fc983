"""Properties of policy fields: which accept lists, None, JSON, or secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import SecretStr

from opero.errors import nearest
from opero.policies.adaptive_ttl import AdaptiveTTL
from opero.policies.limits import Limit
from opero.policies.policy import FLAT_OPTIONS, KINDS
from opero.policies.refusals import hint
from opero.policies.scope import KeyedScope

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

ALIASES: dict[str, tuple[str, str]] = {"backoff": FLAT_OPTIONS["backoff_factor"]}
"""Aliases of flat options, in environment variables only."""

OPTIONS: dict[str, tuple[str, str | None]] = {
    **{f"{kind}_{field}": (kind, field) for kind, model in KINDS.items() for field in model.model_fields},
    **FLAT_OPTIONS,
    **ALIASES,
    **{kind: (kind, None) for kind in KINDS},
    "enabled": ("enabled", None),
}
"""What may follow the name of a profile in a flat variable → the policy and field; no field: the policy itself, or the
switch of all policies."""


def _types(annotation: Any) -> Iterator[Any]:
    """Yield every type within an annotation."""
    yield get_origin(annotation) or annotation
    for each in get_args(annotation):
        yield from _types(each)


@cache
def _held(kind: str, field: str) -> tuple[FieldInfo | None, frozenset[Any]]:
    info = KINDS[kind].model_fields.get(field)
    return info, frozenset() if info is None else frozenset(_types(info.annotation))


def is_secret(kind: str, field: str) -> bool:
    return SecretStr in _held(kind, field)[1]


@cache
def secrets_of(kind: str) -> tuple[str, ...]:
    """Return the fields of a policy that are secret."""
    return tuple(field for field in KINDS[kind].model_fields if is_secret(kind, field))


def is_hidden(kind: str, field: str) -> bool:
    """Return whether messages must not show its value: a secret, or free data that may contain one."""
    return bool(_held(kind, field)[1] & {SecretStr, Mapping}) or is_json(kind, field)


@cache
def hidden_keys() -> frozenset[str]:
    """Return the keys in files, and the flat options, whose values messages must not show."""
    flat = {option for option, (kind, field) in FLAT_OPTIONS.items() if is_hidden(kind, field)}
    own = {field for kind, model in KINDS.items() for field in model.model_fields if is_hidden(kind, field)}
    return frozenset(flat | own)


@cache
def known_words() -> frozenset[str]:
    """Return all words with a meaning in the format, in lower case."""
    from opero.policies.alert import Alert, Condition  # few programs have alerts, and models are expensive

    fields = (
        {field for model in KINDS.values() for field in model.model_fields}
        | AdaptiveTTL.model_fields.keys()
        | KeyedScope.model_fields.keys()
        | Limit.model_fields.keys()
    )
    groups = ("policies", "defaults", "functions", "imports", "import_from", "alerts", "extends", "policy")
    of_alerts = {*Alert.model_fields, *Condition.model_fields}
    return frozenset(
        {*KINDS, *OPTIONS, *fields, *groups, *of_alerts, "true", "false", "null", "yes", "no", "on", "off"}
    )


def is_list(kind: str, field: str) -> bool:
    return tuple in _held(kind, field)[1]


def is_json(kind: str, field: str) -> bool:
    """Return whether it holds free data, which text represents as JSON."""
    info, types = _held(kind, field)
    return Mapping in types or (info is not None and info.annotation is Any and not info.metadata)


def admits_none(kind: str, field: str) -> bool:
    info, types = _held(kind, field)
    return NoneType in types or (info is not None and info.annotation is Any and info.default is None)


def suggest_key(key: str, kind: str | None = None, value: object = None, parent: str | None = None) -> str:
    """Suggest where an unknown key of a profile or policy belongs, or the nearest known one."""
    if "<" in key:
        return "; did you mean '<<'?"
    option = (FLAT_OPTIONS | ALIASES).get(key)
    if kind is not None:
        if key == "shadow" and KINDS[kind].no_shadow:
            return f": {KINDS[kind].no_shadow}"
        if option is not None and option[0] == kind:
            return f"; did you mean {option[1]!r}?"
        elsewhere = [each for each, model in KINDS.items() if key in model.model_fields and key != "enabled"]
        ways = [f"`{home}: {{{key}: {_example(home, key, value)}}}`" for home in elsewhere]
        return hint(key, KINDS[kind].model_fields, ways)
    homes = (
        [option]
        if option
        else [(each, key) for each, model in KINDS.items() if key in model.model_fields and key != "enabled"]
    )
    if homes:
        return "; use " + " or ".join(f"`{home}: {{{field}: {_example(home, field, value)}}}`" for home, field in homes)
    return nearest(key, [*KINDS, "enabled", *([parent] if parent else [])])


def _example(kind: str, field: str, value: object) -> str:
    if is_hidden(kind, field) or not isinstance(value, str | int | float):
        return "…"
    return str(value).lower() if isinstance(value, bool) else str(value)
