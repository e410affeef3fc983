"""The import rule: a package imports only packages below it, and no modules import each other in a circle.

It holds at module level, inside functions and under TYPE_CHECKING alike. docs/architecture.md explains it, and lists
all modules and all global state: `python tests/test_architecture.py` rewrites the list of modules.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "opero"
DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"

FLOORS = (
    "dataclass patterns",
    "problems",
    "errors values failures",
    "events",
    "runtime",
    "observe",
    "policies",
    "config",
    "cache",
    "executors",
    "binding",
    "parallel",
    "bound",
    "alerts",
    "registry",
    "health",
    "decorators",
    "integrations",
    "__init__",
    "testing",
    "pytest_plugin",
    "migrate",
    "cli",
    "__main__",
)
"""The modules and packages of opero, the lowest first."""

LOADED_BY_NAME = {
    "__init__.py",
    "cli/app.py",
    "migrate/__main__.py",
    "policies/door.py",
    "registry/default.py",
}
"""The files that may load modules of opero by name: the lazy package, the command's lazy subcommands, `python -m
opero.migrate`, the one way up from policies, and what variables switch on."""

TYPES_MAY_CIRCLE = "policies"


HEADING = "rewrites this section.\n\n"
"""The end of what is written by hand in docs/architecture.md."""


class Arrow(NamedTuple):
    """One import of a module of opero."""

    source: str
    target: str
    line: int
    types_only: bool

    def __str__(self) -> str:
        return f"src/{self.source.replace('.', '/')}.py:{self.line}: imports {self.target}"


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name → file; a package is named by its `__init__`."""
    files = sorted(root.rglob("*.py"))
    return {".".join((root.name, *file.relative_to(root).with_suffix("").parts)): file for file in files}


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def arrows_of(root: Path) -> list[Arrow]:
    """All imports of modules of the package by modules of the package."""
    modules = modules_of(root)

    def resolve(name: str) -> str | None:
        return name if name in modules else f"{name}.__init__" if f"{name}.__init__" in modules else None

    def imports(node: ast.AST, types_only: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((each.name, child.lineno, types_only) for each in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "imports are absolute"
                for each in child.names:
                    name = f"{child.module}.{each.name}"
                    yield (name if resolve(name) else str(child.module)), child.lineno, types_only
            is_guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports(child, types_only or is_guard)

    return [
        Arrow(source, target, line, types_only)
        for source, file in modules.items()
        for name, line, types_only in imports(parsed(file), False)
        if (target := resolve(name)) is not None and target != source
    ]


def top(module: str) -> str:
    """The module or package of the top level that a module belongs to."""
    return module.split(".")[1]


def wrong_arrows(arrows: list[Arrow], floors: tuple[str, ...]) -> list[str]:
    """The imports that do not lead down."""
    floor = {name: number for number, names in enumerate(floors) for name in names.split()}
    return [
        f"{each} ({top(each.target)} is not below {top(each.source)})"
        for each in arrows
        if top(each.source) != top(each.target) and floor[top(each.target)] >= floor[top(each.source)]
    ]


def circles(arrows: list[Arrow]) -> list[str]:
    """A circle inside each package that has one."""
    found = []
    for package in sorted({top(each.source) for each in arrows}):
        inner = [
            each
            for each in arrows
            if top(each.source) == top(each.target) == package and not (package == TYPES_MAY_CIRCLE and each.types_only)
        ]
        graph: dict[str, set[str]] = {}
        for each in inner:
            graph.setdefault(each.source, set()).add(each.target)
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            path = error.args[1][::-1]
            steps = [
                str(next(each for each in inner if (each.source, each.target) == step))
                for step in itertools.pairwise(path)
            ]
            found.append("\n  ".join([f"a circle in {package}:", *steps]))
    return found


def loaded_by_name(root: Path) -> list[str]:
    """The places that load a module of opero by name."""
    found = []
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                argument = ast.unparse(node.args[0]).lstrip("f").strip("'\"")
                if argument.startswith(root.name):
                    found.append(f"{file.relative_to(root).as_posix()}:{node.lineno}")
    return found


def list_of_modules(root: Path) -> str:
    """Each module with the first line of its docstring, by package."""
    lines: list[str] = []
    for directory in sorted({file.parent for file in root.rglob("*.py")}):
        package = directory.relative_to(root).as_posix()
        lines += ["", f"### {'The top level' if package == '.' else f'{package}/'}", ""]
        for file in sorted(directory.glob("*.py")):
            docstring = ast.get_docstring(parsed(file))
            assert docstring, f"{file} has a docstring"
            if docstring:
                lines.append(f"- `{file.name}`: {docstring.splitlines()[0]}")
    return "\n".join(lines).strip() + "\n"


def has_global_state(file: Path) -> bool:
    """Whether a module rebinds its own names, runs code at forks, or has a lock or weak references for the process."""
    module = parsed(file)
    return any(
        isinstance(node, ast.Global) or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("at_fork"))
        for node in ast.walk(module)
    ) or any(
        isinstance(node, ast.Assign | ast.AnnAssign)
        and node.value is not None
        and ast.unparse(node.value).endswith(("Lock()", "WeakSet()", "Dictionary()"))
        for node in module.body
    )


def unrenewed_locks(module: ast.Module) -> list[str]:
    """The locks that forked children would inherit as they are, as "line: name"."""
    renewed = {
        ast.literal_eval(node.args[1])
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("renew_in_child") and len(node.args) > 1
    }
    after_fork = [
        range(node.lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.name in ("after_fork", "_forget_threads")
    ]
    made_after_fork = {
        ast.unparse(target)
        for node in ast.walk(module)
        if isinstance(node, ast.Assign) and any(node.lineno in lines for lines in after_fork)
        for target in node.targets
    }
    found = []
    for node in ast.walk(module):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        _, _, kind = ast.unparse(node.value.func).partition("threading.")
        if kind not in ("Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"):
            continue
        [target] = node.targets if isinstance(node, ast.Assign) else [node.target]
        name = ast.unparse(target)
        is_renewed = kind == "RLock" and name.removeprefix("self.") in renewed
        if not is_renewed and name not in made_after_fork:
            found.append(f"{node.lineno}: {name}")
    return found


def test_packages_import_only_what_is_below_them() -> None:
    known = {top(name) for name in modules_of(SOURCE)}
    assert known == set(" ".join(FLOORS).split()), "each module and package of the top level has its floor"
    wrong = wrong_arrows(arrows_of(SOURCE), FLOORS)
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_modules_of_a_package_import_each_other_in_a_circle() -> None:
    found = circles(arrows_of(SOURCE))
    assert not found, "\n" + "\n".join(found)


def test_modules_are_loaded_by_name_in_the_listed_files_only() -> None:
    assert {place.partition(":")[0] for place in loaded_by_name(SOURCE)} == LOADED_BY_NAME


def test_the_document_lists_every_module() -> None:
    _, _, listed = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)
    assert listed == list_of_modules(SOURCE), "the modules have changed: python tests/test_architecture.py"


def test_the_document_lists_all_global_state() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("\n## Forks and global state\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([\w/.]+\.py)`", section, re.MULTILINE))
    files = {file.relative_to(SOURCE).as_posix(): file for file in SOURCE.rglob("*.py")}
    found = {name for name, file in files.items() if has_global_state(file) and not name.startswith("testing/")}
    assert found <= listed <= files.keys()


NOT_RENEWED = {
    "cache/computation_lock.py": "the lock of one computation, which nobody but its own threads uses",
    "observe/stats.py": "is below runtime/forking.py, which renews it",
    "parallel/transport/process.py": "the program of a worker: a child that it forks never comes back to it",
    "testing/workers.py": "a test suite",
}


def test_forked_children_inherit_no_lock_as_it_is() -> None:
    files = {file.relative_to(SOURCE).as_posix(): file for file in SOURCE.rglob("*.py")}
    found = [
        f"src/opero/{name}:{lock}: use a RenewedLock, or an RLock and renew_in_child"
        for name, file in files.items()
        for lock in unrenewed_locks(parsed(file))
        if name not in NOT_RENEWED
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lock = threading.Lock()", ["1: lock"]),
        ("lock = RenewedLock()", []),
        ("class A:\n    def f(self):\n        self.lock = threading.RLock()", ["3: self.lock"]),
        ("class A:\n    def f(self):\n        self.lock = threading.RLock()\n        renew_in_child(self, 'lock')", []),
        (
            "class A:\n    def f(self):\n        self.a = threading.RLock()\n        renew_in_child(self, 'b')",
            ["3: self.a"],
        ),
        (
            "class A:\n    def f(self):\n        self.a = threading.Lock()\n        renew_in_child(self, 'a')",
            ["3: self.a"],
        ),
    ],
)
def test_a_lock_that_is_not_renewed_is_found(text: str, found: list[str]) -> None:
    assert unrenewed_locks(ast.parse(text)) == found


@pytest.mark.parametrize(
    "text",
    [
        "import sample.upper",
        "from sample.upper import name",
        "from sample import upper",
        "def function():\n    from sample.upper import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sample.upper import name",
    ],
)
def test_an_import_that_leads_up_is_found_with_its_line(text: str, tmp_path: Path) -> None:
    root = tmp_path / "sample"
    root.mkdir()
    for name, source in {"__init__": "", "upper": "name = 1\n", "lower": text}.items():
        (root / f"{name}.py").write_text(source)
    line = len(text.splitlines())
    (wrong,) = wrong_arrows(arrows_of(root), ("lower", "upper", "__init__"))
    assert wrong == f"src/sample/lower.py:{line}: imports sample.upper (upper is not below lower)"
    assert not wrong_arrows(arrows_of(root), ("upper", "lower", "__init__"))


def test_a_circle_is_found_with_its_steps(tmp_path: Path) -> None:
    package = tmp_path / "sample" / "package"
    package.mkdir(parents=True)
    for name, source in {"one": "import sample.package.two", "two": "\nfrom sample.package import one"}.items():
        (package / f"{name}.py").write_text(source)
    (found,) = circles(arrows_of(tmp_path / "sample"))
    assert "src/sample/package/one.py:1: imports sample.package.two" in found
    assert "src/sample/package/two.py:2: imports sample.package.one" in found


if __name__ == "__main__":
    written, heading, _ = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)
    DOCUMENT.write_text(written + heading + list_of_modules(SOURCE), encoding="utf-8")
