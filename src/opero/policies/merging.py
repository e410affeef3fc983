"""The rule by which statements about a policy are merged, wherever they are made.

A statement is what one place says about one policy: a keyword of `Policy(...)`, `Policy.replace(...)` or a decorator,
an entry of a file, an environment variable, an override. Statements are merged from the lowest precedence to the
highest:

| statement | meaning | effect on the statements below it |
|---|---|---|
| `{ttl: 5}`, or flat options such as `cache_ttl=5` | these fields | the same fields are replaced, all others stay |
| `30m` (short form) | `{ttl: 30m}` | as above |
| `true`, `false` | `{enabled: true}`, `{enabled: false}` | as above: the policy keeps its values |
| `null`, `None` | no policy | all of them are discarded |
| a list, for a rate limit | `{limits: …}` | as above; it replaces the fields of one limit, and `rate` it |
| a policy object, `CachePolicy(ttl=5)` | its fields, and the defaults for all others | all of them are discarded |

Where nothing but "switched off" remains, there are no values to keep and the policy is absent. So `false` is valid for
every policy, including those that require values. Values do not switch a policy on again; only `true` does.

The rule does not look at the values of fields: code merges plain values, configuration merges values marked with their
sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from opero.policies.quantities import SPACE, any_case, fits

if TYPE_CHECKING:
    from opero.policies.base import BasePolicy

TRUE = ("true", "yes", "on", "y", "t", "1")
FALSE = ("false", "no", "off", "n", "f", "0")
FLAG_TEXT = rf"^{SPACE}{any_case(TRUE + FALSE)}{SPACE}$"


def is_false(value: object) -> bool:
    """Return whether a flag's value, in any form, is false."""
    return value is False or (isinstance(value, str) and value.strip().lower() in FALSE and fits(FLAG_TEXT, value))


V = TypeVar("V")


class Replacing(dict[str, V]):
    """Fields of a policy that discard all statements of lower precedence."""

    __slots__ = ()


class ObjectFields(Replacing[V]):
    """The fields of a policy object."""

    __slots__ = ()


def fields_of(model: type[BasePolicy], value: Any) -> dict[str, Any] | None:
    """Return the fields that a statement sets, or None if it removes the policy.

    Raises:
        ValueError: a bare value for a policy that has no short form.
    """
    if value is None:
        return None
    if type(value) is dict:  # most statements of files
        return dict(value)
    if isinstance(value, model):
        return ObjectFields(value._given())
    if isinstance(value, Replacing):
        return type(value)(value)
    return model.expand(value)


NOTHING: Mapping[str, tuple[str, ...]] = {}


def overlay(
    lower: dict[str, V] | None, upper: dict[str, V] | None, exclusive: Mapping[str, tuple[str, ...]] = NOTHING
) -> dict[str, V] | None:
    """Merge a statement with the one of the next higher precedence. Associative.

    Args:
        lower, upper: the statements.
        exclusive: field → fields that it discards from below, as `BasePolicy.exclusive`.
    """
    if upper is None or isinstance(upper, Replacing):
        return upper
    if lower is None:
        return Replacing(upper)
    if exclusive:
        gone = {other for field in upper if field in exclusive for other in exclusive[field]}
        if not gone.isdisjoint(lower):
            lower = type(lower)((field, value) for field, value in lower.items() if field not in gone)
    return Replacing({**lower, **upper}) if isinstance(lower, Replacing) else {**lower, **upper}


def merge_statements(
    statements: Iterable[dict[str, V] | None], exclusive: Mapping[str, tuple[str, ...]] = NOTHING
) -> dict[str, V] | None:
    """Merge statements about one policy, lowest precedence first; None if there are none."""
    result: dict[str, V] | None = None
    for index, statement in enumerate(statements):
        result = overlay(result, statement, exclusive) if index else statement
    return result


def is_absent(statement: Any) -> bool:
    """Return whether a statement contains nothing but "switched off", so that there is no policy."""
    if type(statement) is not dict and (isinstance(statement, ObjectFields) or not isinstance(statement, Mapping)):
        return statement is False
    return len(statement) == 1 and is_false(statement.get("enabled"))
