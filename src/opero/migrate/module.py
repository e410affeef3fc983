"""The retry decorators of one module: where they are, what they mean, and the module without them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import libcst as cst
from libcst.metadata import (
    Assignment,
    GlobalScope,
    ImportAssignment,
    MetadataWrapper,
    PositionProvider,
    QualifiedNameProvider,
    ScopeProvider,
)

from opero.dataclass import dataclass
from opero.errors import message_of
from opero.migrate.delays import NotTranslatableError
from opero.migrate.imports import add_import, without_names
from opero.migrate.libraries import OTHERS, TRANSLATORS
from opero.migrate.reading import Reader, Translation, code_of
from opero.migrate.tenacity import RETRY_ERROR

ATTRIBUTES = ("retry", "retry_with", "statistics")
"""What tenacity adds to functions."""
RAISED = ("RetryError", "TryAgain")
TOOLS = re.compile(r"#\s*(noqa|type:|pragma|isort|pyright|fmt|ruff|pylint)")
"""The comments that concern a line and not its reader."""


@dataclass(frozen=True)
class Found:
    """A use of one of the libraries.

    Attributes:
        line: its line.
        function: the qualified name of the decorated function; "" if it is no decorator.
        library: "tenacity", "stamina" or "backoff".
        translation: what replaces it; None if it is left alone.
        reason: why it is left alone.
        decorator: the decorator.
    """

    line: int
    function: str
    library: str
    translation: Translation | None
    reason: str
    decorator: cst.Decorator | None


class Module:
    """A module and what it uses of the libraries.

    Args:
        source: its source code.
        may_name: whether profiles may name something that the module imports.

    Raises:
        libcst.ParserSyntaxError, UnicodeDecodeError: it cannot be parsed.
    """

    def __init__(self, source: bytes, may_name: Callable[[str], bool]) -> None:
        self._wrapper = MetadataWrapper(cst.parse_module(source))
        self._module = self._wrapper.module
        self._names = self._wrapper.resolve(QualifiedNameProvider)
        self._scopes = self._wrapper.resolve(ScopeProvider)
        self._positions = self._wrapper.resolve(PositionProvider)
        functions = _Functions()
        self._module.visit(functions)
        self._functions = functions.found
        plain = {name for name, node in self._functions if node.asynchronous is None}
        self._reader = Reader(self._names, plain.__contains__, may_name)
        self._nodes = [*_walk(self._module)]
        labels = {each for node in self._nodes for each in _labels(node)}
        self._expressions = {
            each for each in self._nodes if isinstance(each, cst.Name | cst.Attribute) and each not in labels
        }
        self._attributes = {
            code_of(each.value).rpartition(".")[2]: (self._line(each), code_of(each))
            for each in self._nodes
            if isinstance(each, cst.Attribute) and each.attr.value in ATTRIBUTES
        }
        self._top = next((each for each in self._scopes.values() if isinstance(each, GlobalScope)), None)
        self.found = sorted(self._find(), key=lambda each: each.line)

    def _find(self) -> Iterator[Found]:
        callees: set[cst.CSTNode] = set()
        raised = self._raised()
        obstacle = self._obstacle(raised)
        for name, function in self._functions:
            libraries = [(each, self._library(each.decorator)) for each in function.decorators]
            own = [(each, library) for each, library in libraries if library is not None]
            for decorator, library in own:
                callees.add(_callee(decorator.decorator))
                translation, reason = None, obstacle or self._conflict(name, function, len(own))
                if not reason:
                    callee, is_async = _callee(decorator.decorator), function.asynchronous is not None
                    translate = TRANSLATORS[library][self._reader.imported(callee, library) or ""]
                    try:
                        translation = translate(self._reader, decorator.decorator, is_async)
                    except NotTranslatableError as error:
                        reason = message_of(error)
                if translation is not None and RETRY_ERROR in translation.differences and "RetryError" in raised:
                    translation, reason = None, "the module uses RetryError, which opero does not raise"
                yield Found(self._line(decorator), name, library, translation, reason, decorator)
        for node in self._nodes:
            for library in TRANSLATORS:
                reason = "" if node in callees else self._elsewhere(node, library)
                if reason:
                    yield Found(self._line(node), "", library, None, reason, None)

    def _elsewhere(self, node: cst.CSTNode, library: str) -> str:
        """Return why a use of a library that decorates nothing is left alone; "" if it is none."""
        if isinstance(node, cst.ImportFrom):
            is_of_library = node.module is not None and code_of(node.module).partition(".")[0] == library
            is_star = isinstance(node.names, cst.ImportStar) and is_of_library and not node.relative
            return "import * hides which names are of the library; import them by name" if is_star else ""
        used = self._reader.imported(node, library) if node in self._expressions else None
        if used in TRANSLATORS[library]:
            return f"{code_of(node)} is not a decorator here; write it at the functions"
        return (
            f"{used} has no equal in a profile; put what it repeats into a function" if used in OTHERS[library] else ""
        )

    def _line(self, node: cst.CSTNode) -> int:
        return int(self._positions[node].start.line)

    def _library(self, node: cst.BaseExpression) -> str | None:
        callee = _callee(node)
        return next((each for each in TRANSLATORS if self._reader.imported(callee, each) in TRANSLATORS[each]), None)

    def _obstacle(self, raised: set[str | None]) -> str:
        """Return why no decorator of the module can be replaced, or ""."""
        for scope in {id(each): each for each in self._scopes.values() if each is not None}.values():
            for assignment in scope.assignments:
                if assignment.name == "opero" and not self._is_opero(assignment):
                    return "the module has a name opero of its own"
        return "the module uses TryAgain, which opero does not know" if "TryAgain" in raised else ""

    def _is_opero(self, assignment: Any) -> bool:
        if not isinstance(assignment, ImportAssignment):
            return False
        names = assignment.get_qualified_names_for(assignment.name)
        return any(each.name.partition(".")[0] == "opero" for each in names)

    def _raised(self) -> set[str | None]:
        """Return the exceptions of tenacity that the module uses."""
        names = (self._reader.imported(node, "tenacity") for node in self._expressions)
        return {name for name in names if name in RAISED}

    def _conflict(self, name: str, function: cst.FunctionDef, count: int) -> str:
        """Return why the decorator of this function cannot be replaced, or ""."""
        if count > 1:
            return "the function has several retry decorators, and a profile is one; join them"
        if any(self._is_opero_name(_callee(each.decorator)) for each in function.decorators):
            return "the function has a policy of opero already"
        if _is_generator(function):
            return "it is a generator, which opero retries up to its first item only, and the library otherwise"
        own = function.name.value
        if own in self._attributes:
            line, code = self._attributes[own]
            return f"{code} in line {line} is an attribute of tenacity; use {own}.stats"
        return ""

    def _is_opero_name(self, node: cst.BaseExpression) -> bool:
        found = self._reader.name(node)
        return found is not None and found.name.partition(".")[0] == "opero"

    def rewritten(self, profiles: Mapping[int, str]) -> bytes:
        """Return the source with decorators replaced.

        Args:
            profiles: index in `found` → the name of the profile.
        """
        callee = self._opero_as()
        replaced: dict[cst.CSTNode, cst.CSTNode] = {}
        gone: set[cst.CSTNode] = set()
        for index, profile in profiles.items():
            found = self.found[index]
            assert found.decorator is not None
            assert found.translation is not None
            arguments = [cst.Arg(cst.SimpleString(f'"{profile}"'), cst.Name("policy"), _NO_SPACES)]
            for option, node in found.translation.code.items():
                arguments.append(cst.Arg(node, cst.Name(option), _NO_SPACES))
            call = cst.Call(cst.parse_expression(callee or "opero"), arguments)
            kept = {each for node in found.translation.code.values() for each in _walk(node)}
            gone |= {each for each in _walk(found.decorator) if each not in kept}
            comments = [
                cst.EmptyLine(comment=each)
                for each in _walk(found.decorator.decorator)
                if isinstance(each, cst.Comment) and not TOOLS.match(each.value)
            ]
            lines = [*found.decorator.leading_lines, *comments]
            replaced[found.decorator] = found.decorator.with_changes(decorator=call, leading_lines=lines)
        unused_names = self._unused(gone)
        module = self._module.visit(_Replace(replaced))
        assert isinstance(module, cst.Module)
        body: list[Any] = list(module.body)
        # Nodes are made anew by `visit`, in the same order.
        unused = {
            body[index].body[0]: unused_names[statement.body[0]]
            for index, statement in enumerate(self._module.body)
            if isinstance(statement, cst.SimpleStatementLine) and statement.body[0] in unused_names
        }
        if callee is None:
            add_import(body, [index for index, each in enumerate(self._module.body) if self._imports_library(each)])
        return module.with_changes(body=without_names(body, unused)).bytes

    def _opero_as(self) -> str | None:
        """Return the name by which the module has imported the decorator; None if it has not."""
        for assignment in () if self._top is None else self._top.assignments:
            if isinstance(assignment, ImportAssignment) and self._is_opero(assignment):
                names = {each.name for each in assignment.get_qualified_names_for(assignment.name)}
                if "opero.opero" in names:
                    return assignment.name
                if isinstance(assignment.node, cst.Import) and names == {"opero"}:
                    return f"{assignment.name}.opero"
        return None

    def _imports_library(self, statement: cst.CSTNode) -> bool:
        for line in statement.body if isinstance(statement, cst.SimpleStatementLine) else ():
            names = (
                [line.module]
                if isinstance(line, cst.ImportFrom)
                else [each.name for each in line.names]
                if isinstance(line, cst.Import)
                else []
            )
            if any(each is not None and code_of(each).partition(".")[0] in TRANSLATORS for each in names):
                return True
        return False

    def _unused(self, gone: set[cst.CSTNode]) -> dict[cst.CSTNode, set[str]]:
        """Return import → the names of it that only what is gone has used."""
        found: dict[cst.CSTNode, set[str]] = {}
        assignments: Sequence[Any] = [] if self._top is None else list(self._top.assignments)
        exported = self._exported()
        for assignment in assignments:
            if not isinstance(assignment, ImportAssignment) or assignment.name in exported:
                continue
            nodes = [access.node for access in assignment.references]
            if nodes and all(node in gone for node in nodes):
                found.setdefault(assignment.node, set()).add(assignment.name)
        return found

    def _exported(self) -> set[str]:
        """Return the texts of `__all__`."""
        found: set[str] = set()
        for assignment in () if self._top is None else self._top.assignments:
            if isinstance(assignment, Assignment) and assignment.name == "__all__":
                for statement in self._module.body:
                    if "__all__" in (code := code_of(statement)):
                        found |= set(re.findall(r"""["'](\w+)["']""", code))
        return found


_NO_SPACES = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))


def _callee(node: cst.BaseExpression) -> cst.BaseExpression:
    return node.func if isinstance(node, cst.Call) else node


def _walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _labels(node: cst.CSTNode) -> list[cst.CSTNode | None]:
    """Return the names in a node that are no expressions."""
    if isinstance(node, cst.Attribute):
        return [node.attr]
    if isinstance(node, cst.Arg):
        return [node.keyword]
    if isinstance(node, cst.Param | cst.FunctionDef | cst.ClassDef):
        return [node.name]
    return [*_walk(node)] if isinstance(node, cst.Import | cst.ImportFrom) else []


def _is_generator(function: cst.FunctionDef) -> bool:
    def yields(node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef | cst.ClassDef | cst.Lambda):
            return False
        return isinstance(node, cst.Yield) or any(map(yields, node.children))

    return yields(function.body)


class _Functions(cst.CSTVisitor):
    """Collects the functions of a module with their qualified names."""

    def __init__(self) -> None:
        self.found: list[tuple[str, cst.FunctionDef]] = []
        self._path: list[str] = []

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:  # noqa: N802  # the name that libcst calls
        self.found.append((".".join([*self._path, node.name.value]), node))
        self._path += [node.name.value, "<locals>"]

    def leave_FunctionDef(self, original_node: cst.FunctionDef) -> None:  # noqa: N802
        del self._path[-2:]

    def visit_ClassDef(self, node: cst.ClassDef) -> None:  # noqa: N802
        self._path.append(node.name.value)

    def leave_ClassDef(self, original_node: cst.ClassDef) -> None:  # noqa: N802
        self._path.pop()


class _Replace(cst.CSTTransformer):
    """Replaces decorators."""

    def __init__(self, nodes: Mapping[cst.CSTNode, cst.CSTNode]) -> None:
        super().__init__()
        self._nodes = nodes

    def leave_Decorator(self, original_node: cst.Decorator, updated_node: cst.Decorator) -> Any:  # noqa: N802
        return self._nodes.get(original_node, updated_node)
