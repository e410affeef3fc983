"""Adds and removes import statements at the top of a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import libcst as cst

IMPORT = "from opero import opero\n"


def add_import(body: list[Any], libraries: Sequence[int]) -> None:
    """Add `from opero import opero` to the imports.

    Args:
        body: the statements of a module, which is changed.
        libraries: the positions of those that import the libraries whose decorators are replaced.
    """
    near = libraries[0] if libraries else _last_import(body)
    if near is None:
        body.insert(_start(body), cst.parse_statement(IMPORT))
        return
    first = last = near
    while first > 0 and _is_import(body[first - 1]) and not _begins_group(body[first]):
        first -= 1
    while last + 1 < len(body) and _is_import(body[last + 1]) and not _begins_group(body[last + 1]):
        last += 1
    later = (index for index in range(first, last + 1) if _sort_key(body[index]) > (1, "opero"))
    place = next(later, last + 1)
    added: Any = cst.parse_statement(IMPORT)
    if place == first:
        added = added.with_changes(leading_lines=body[first].leading_lines)
        body[first] = body[first].with_changes(leading_lines=())
    body.insert(place, added)


def without_names(body: list[Any], unused: Mapping[cst.CSTNode, set[str]]) -> list[Any]:
    """Return statements without imports of unused names. What stands above an import that is removed is kept."""
    kept: list[Any] = []
    above: list[cst.EmptyLine] = []
    for statement in body:
        names = unused.get(statement.body[0], set()) if _is_import(statement) and len(statement.body) == 1 else set()
        rest = _without(statement, names) if names else statement
        if rest is None:
            above += statement.leading_lines
            continue
        if above:
            rest = rest.with_changes(leading_lines=_joined(above, [*rest.leading_lines]))
            above = []
        kept.append(rest)
    if kept and _is_import(body[0]) and kept[0] is not body[0]:
        lines = [*kept[0].leading_lines]  # no blank lines at the top
        kept[0] = kept[0].with_changes(leading_lines=lines[len(_leading_blanks(lines)) :])
    return kept


def _joined(above: list[cst.EmptyLine], below: list[cst.EmptyLine]) -> list[cst.EmptyLine]:
    if all(each.comment is None for each in above):
        blank = sum(1 for _ in _leading_blanks(below))
        return [*above[blank:], *below]
    return [*above, *below]


def _leading_blanks(lines: list[cst.EmptyLine]) -> list[cst.EmptyLine]:
    count = next((index for index, each in enumerate(lines) if each.comment is not None), len(lines))
    return lines[:count]


def _without(statement: Any, names: set[str]) -> Any:
    """Return an import statement without some names; None if none is left."""
    line = statement.body[0]
    if isinstance(line.names, cst.ImportStar):
        return statement
    left = [each for each in line.names if _bound(each) not in names]
    if not left:
        return None
    if len(left) == len(line.names):
        return statement
    is_open = getattr(line, "lpar", None) is None
    if line.names[-1] not in left:
        left[-1] = left[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT if is_open else line.names[-1].comma)
    return statement.with_changes(body=[line.with_changes(names=left)])


def _bound(alias: cst.ImportAlias) -> str:
    """Return the name that an import binds, as `ScopeProvider` names it."""
    return alias.evaluated_alias or alias.evaluated_name


def _is_import(statement: Any) -> bool:
    return isinstance(statement, cst.SimpleStatementLine) and isinstance(statement.body[0], cst.Import | cst.ImportFrom)


def _begins_group(statement: Any) -> bool:
    return any(each.comment is None for each in statement.leading_lines)


def _sort_key(statement: Any) -> tuple[int, str]:
    """Return what orders imports as isort does: plain ones first, relative ones last."""
    line = statement.body[0]
    if isinstance(line, cst.Import):
        return 0, ""
    name = "" if line.module is None else cst.Module([]).code_for_node(line.module)
    return (2, name) if line.relative else (1, name.lower())


def _last_import(body: list[Any]) -> int | None:
    return next((index for index in reversed(range(len(body))) if _is_import(body[index])), None)


def _start(body: list[Any]) -> int:
    """Return the place behind the docstring."""
    line = body[0].body[0] if body and isinstance(body[0], cst.SimpleStatementLine) else None
    return int(isinstance(line, cst.Expr) and isinstance(line.value, cst.SimpleString | cst.ConcatenatedString))
