"""Reads expressions without running them: names by their imports, numbers, times, exceptions and functions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

import libcst as cst
from libcst.metadata import QualifiedName, QualifiedNameSource

from opero.dataclass import dataclass
from opero.migrate.delays import NotTranslatableError, Options

NOT_RETRIED = ("BaseException", "KeyboardInterrupt", "SystemExit", "GeneratorExit", "asyncio.CancelledError")
TIME_UNITS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1, "milliseconds": 1e-3, "microseconds": 1e-6}


@dataclass
class Translation:
    """What replaces a decorator.

    Attributes:
        retry: options of the retry policy.
        total: the total timeout, in seconds; None if there is none.
        conditions: the names of the exceptions for `retry_on`, if all have one that can be imported.
        code: option of `@opero` → its expression, for what cannot stand in a file.
        responses: whether a returned response with an error status counts as a failure.
        differences: what is different afterwards.
    """

    retry: Options = field(default_factory=dict)
    total: float | None = None
    conditions: list[str] | None = None
    code: dict[str, cst.BaseExpression] = field(default_factory=dict)
    responses: bool = True
    differences: list[str] = field(default_factory=list)


class Reader:
    """Reads the expressions of one module.

    Args:
        names: expression → what it may refer to, by the module's imports.
        is_plain: whether a name is that of a function of the module that is not async.
        may_name: whether profiles may name something that the module imports.
    """

    def __init__(
        self, names: Mapping[cst.CSTNode, Any], is_plain: Callable[[str], bool], may_name: Callable[[str], bool]
    ) -> None:
        self._names = names
        self.is_plain = is_plain
        self.may_name = may_name

    def name(self, node: cst.CSTNode) -> QualifiedName | None:
        """Return what a name refers to, or None if that is not certain."""
        found = self._names.get(node, ())
        found = found() if callable(found) else found
        return next(iter(found)) if len(found) == 1 else None

    def imported(self, node: cst.CSTNode, library: str) -> str | None:
        """Return the name by which a library offers what an expression refers to; None if it is of elsewhere."""
        found = self.name(node)
        if found is None or found.source is not QualifiedNameSource.IMPORT:
            return None
        package, *path = found.name.split(".")
        # Names may be imported from the modules that define them; those in tenacity.asyncio are others.
        return path[-1] if package == library and path and path[:-1] != ["asyncio"] else None

    def arguments(self, call: cst.BaseExpression, parameters: Sequence[str]) -> dict[str, cst.BaseExpression]:
        """Return parameter → argument of a call.

        Raises:
            NotTranslatableError: the arguments are not written out, or are for unknown parameters.
        """
        found: dict[str, cst.BaseExpression] = {}
        for position, argument in enumerate(call.args if isinstance(call, cst.Call) else ()):
            if argument.star:
                raise NotTranslatableError(f"the arguments {code_of(argument)} are known only at run time")
            if argument.keyword is None and position >= len(parameters):
                raise NotTranslatableError(f"the argument {code_of(argument.value)} has an unknown meaning")
            name = argument.keyword.value if argument.keyword else parameters[position]
            found[name] = argument.value
        return found

    def value(self, node: cst.BaseExpression | None, default: Any = None) -> Any:
        """Return the value of a literal; of None, the default."""
        if node is None:
            return default
        try:
            return ast.literal_eval(code_of(node).strip())
        except (ValueError, SyntaxError):
            raise NotTranslatableError(
                f"{code_of(node)} is not a literal, so its value is known only at run time"
            ) from None

    def number(self, node: cst.BaseExpression | None, default: float | None = None) -> float | None:
        """Return a number, or None where that is written."""
        value = self.value(node, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise NotTranslatableError(f"{value!r} is not a number")
        return value

    def seconds(self, node: cst.BaseExpression | None, default: float | None = None) -> float | None:
        """Return the seconds of a number or a `timedelta`."""
        if isinstance(node, cst.Call):
            name = self.name(node.func)
            if name is not None and name.name == "datetime.timedelta":
                given = self.arguments(node, ("days", "seconds", "microseconds", "milliseconds", "minutes", "hours"))
                if given.keys() <= TIME_UNITS.keys():
                    return sum((self.number(each) or 0) * TIME_UNITS[unit] for unit, each in given.items())
        return self.number(node, default)

    def attempts(self, node: cst.BaseExpression | None, default: int | None = None) -> int | None:
        """Return a number of attempts."""
        value = self.number(node, default)
        if value is not None and (value < 1 or value != int(value)):
            raise NotTranslatableError(f"{value!r} is not a number of attempts")
        return None if value is None else int(value)

    def condition(self, node: cst.BaseExpression) -> cst.BaseExpression:
        """Return an expression of a function that decides.

        Raises:
            NotTranslatableError: it is neither a lambda nor a name, so it might be anything.
        """
        if isinstance(node, cst.Lambda | cst.Name | cst.Attribute):
            return node
        raise NotTranslatableError(f"{code_of(node)} is made at run time; define a function")

    def classes(self, node: cst.BaseExpression, translation: Translation) -> None:
        """Add exception classes: by their names if all have one that can be imported, else as they are written.

        Raises:
            NotTranslatableError: one of them is never retried by opero, or may be a tuple itself.
        """
        elements = node.elements if isinstance(node, cst.Tuple | cst.List) else None
        nodes = [node] if elements is None else [each.value for each in elements]
        named: list[str] = []
        for each in nodes:
            if not isinstance(each, cst.Name | cst.Attribute):
                raise NotTranslatableError(f"{code_of(each)} is known only at run time")
            own = code_of(each)
            found = self.name(each)
            path = found.name if found is not None else own
            if path.removeprefix("builtins.") in NOT_RETRIED:
                raise NotTranslatableError(f"opero does not retry after {own}")
            if path in ("Exception", "builtins.Exception"):
                translation.responses = False  # the exception that a failed response is made of would be one
            last = own.rpartition(".")[2]
            is_class = last[0].isupper() and not last.isupper()
            if elements is not None and not is_class and path.partition(".")[0] != "socket":
                raise NotTranslatableError(f"{own} may be a tuple, which retry_on does not take within another")
            if found is not None and found.source is QualifiedNameSource.BUILTIN and is_class:
                named.append(path.removeprefix("builtins."))
            elif (
                found is not None
                and found.source is QualifiedNameSource.IMPORT
                and is_class
                and not path.startswith(".")
                and self.may_name(path)
            ):
                named.append(path)
        if len(named) == len(nodes):
            translation.conditions = list(dict.fromkeys(named))
        else:
            translation.code["retry_on"] = node


def code_of(node: cst.CSTNode) -> str:
    """Return the code of an expression."""
    return cst.Module([]).code_for_node(node)


def alternatives(node: cst.BaseExpression, operator: type[cst.BaseBinaryOp]) -> Iterator[cst.BaseExpression]:
    """Yield the operands of a chain of one operator."""
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, operator):
        yield from alternatives(node.left, operator)
        yield from alternatives(node.right, operator)
    else:
        yield node
