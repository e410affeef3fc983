"""What `opero check` has found, and the formats in which it tells that."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from opero.cli.terminal import print_json, print_warning, say, styled
from opero.dataclass import dataclass
from opero.errors import visible

if TYPE_CHECKING:
    from opero.errors import Problem

IN_FILE = re.compile(r"([^:\n]+\.ya?ml):([0-9]+):([0-9]+): ")
FIELDS = ("place", "text", "file", "line", "column", "snippet")
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
RULES = {
    "opero/problem": "The configuration is refused, or does not fit a function.",
    "opero/warning": "The configuration is accepted, and should be looked at.",
}


@dataclass(slots=True)
class Findings:
    """Problems and warnings.

    Attributes:
        problems: each problem with the environments that it affects.
        warnings: the texts of warnings, as keys.
        environments: the environments that were checked.
        profiles, functions: the names of what was checked.
        has_functions: whether functions were checked.
        directory: where the policy files are.
    """

    problems: dict[Problem, list[str]] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)
    environments: list[str] = field(default_factory=list)
    profiles: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    has_functions: bool = False
    directory: Path | None = None

    def add(self, problem: Problem, environments: Iterable[str]) -> None:
        """Add a problem, or more environments of a known problem."""
        affected = self.problems.setdefault(problem, [])
        affected += [each for each in environments if each not in affected]

    def where(self, problem: Problem) -> str:
        """Return the environments that a problem affects, in brackets; "" if it affects all."""
        affected = self.problems[problem]
        return "" if len(self.environments) == len(affected) else f"  [{', '.join(affected)}]"


def print_text(found: Findings) -> None:
    """Print findings for people."""
    for warning in found.warnings:
        print_warning(warning)
    for problem in found.problems:
        message, *snippet = str(problem).split("\n")
        shown = styled(message, "bold", sys.stdout) + visible(found.where(problem))
        print("\n".join([shown, *snippet]))  # of a `Problem`
        print()
    count = len(found.problems)
    checked = f"{_number(len(found.environments), 'environment')} ({', '.join(found.environments)})"
    if count:
        say(f"{_number(count, 'problem')} in {checked}", "red")
    else:
        functions = f", {_number(len(found.functions), 'function')}" if found.has_functions else ""
        say(f"{checked}, {_number(len(found.profiles), 'profile')}{functions}: no problems", "green")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def print_as_json(found: Findings) -> None:
    """Print findings in the documented JSON format."""
    print_json(
        {
            "ok": not found.problems,
            "environments": found.environments,
            "profiles": sorted(found.profiles),
            "functions": sorted(found.functions),
            "problems": [
                {**{name: getattr(problem, name) for name in FIELDS}, "environments": affected}
                for problem, affected in found.problems.items()
            ],
            "warnings": [str(each) for each in found.warnings],
        }
    )


def print_github(found: Findings) -> None:
    """Print findings as the commands by which GitHub Actions annotates files."""
    for problem in found.problems:
        text = f"{problem.place}: {problem.text}" if problem.file is None and problem.place else problem.text
        places = {"file": _relative(problem.file), "line": problem.line, "col": problem.column, "title": "opero check"}
        say(_command("error", places, text + found.where(problem)))
    for file, line, column, text in map(_parted, found.warnings):
        places = {"file": _relative(file), "line": line, "col": column, "title": "opero check"}
        say(_command("warning", places, text))
    if not found.problems:
        print_text(Findings(found.problems, {}, found.environments, found.profiles, found.functions))


def _parted(warning: str) -> tuple[str | None, int | None, int | None, str]:
    """Return the file, line and column with which a warning begins, if it does, and its text."""
    found = IN_FILE.match(warning)
    if found is None:
        return None, None, None, warning
    return found[1], int(found[2]), int(found[3]), warning[found.end() :]


def _command(name: str, properties: Mapping[str, Any], text: str) -> str:
    escaped = [f"{key}={_escaped(str(value), ':,')}" for key, value in properties.items() if value is not None]
    return f"::{name} {','.join(escaped)}::{_escaped(text)}"


def _escaped(text: str, more: str = "") -> str:
    for each in f"%\r\n{more}":  # "%" first
        text = text.replace(each, f"%{ord(each):02X}")
    return text


def _relative(file: str | None) -> str | None:
    """Return the path of a file relative to the working directory if it is below, with slashes."""
    if file is None:
        return None
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_posix()


def print_sarif(found: Findings) -> None:
    """Print findings in SARIF 2.1.0, which code scanning reads."""
    from opero import __version__

    results = [
        _result("opero/problem", "error", problem.text + found.where(problem), _location(problem, found))
        for problem in found.problems
    ]
    base = None if found.directory is None else _physical(str(found.directory / "base.yaml"))
    for file, line, column, text in map(_parted, found.warnings):
        location = base if file is None else _physical(file, line, column)
        results.append(_result("opero/warning", "warning", text, location))
    driver = {
        "name": "opero",
        "version": __version__,
        "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in RULES.items()],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    print_json({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


def _result(rule: str, level: str, text: str, location: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "ruleId": rule,
        "ruleIndex": [*RULES].index(rule),
        "level": level,
        "message": {"text": visible(text)},
        "locations": [] if location is None else [location],
    }


def _location(problem: Problem, found: Findings) -> dict[str, Any] | None:
    """Return where a problem is. One that is in no file, such as that of a variable, is shown at base.yaml."""
    if problem.file is not None:
        return _physical(problem.file, problem.line, problem.column, problem.width)
    location = {} if found.directory is None else _physical(str(found.directory / "base.yaml"))
    if problem.place:
        location["logicalLocations"] = [{"fullyQualifiedName": problem.place}]
    return location or None


def _physical(file: str, line: int | None = None, column: int | None = None, width: int = 1) -> dict[str, Any]:
    path = _relative(file) or ""
    artifact: dict[str, Any] = {"uri": quote(path), "uriBaseId": "%SRCROOT%"}
    if Path(path).is_absolute():
        artifact = {"uri": Path(path).as_uri()}
    region: dict[str, int] = {"startLine": line or 1}
    if column is not None:
        region |= {"startColumn": column, "endColumn": column + max(1, width)}
    return {"physicalLocation": {"artifactLocation": artifact, "region": region}}


def print_junit(found: Findings) -> None:
    """Print findings as JUnit XML: a test for each problem, and one for each environment that has none."""
    from xml.etree import ElementTree

    affected = {each for environments in found.problems.values() for each in environments}
    healthy = [each for each in found.environments if each not in affected]
    counts = {"tests": str(len(found.problems) + len(healthy)), "failures": str(len(found.problems))}
    zero = {"errors": "0", "skipped": "0", "time": "0"}
    root = ElementTree.Element("testsuites", counts | zero)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "opero check", **counts, **zero})
    for name in healthy:
        ElementTree.SubElement(suite, "testcase", {"classname": "opero.check", "name": visible(name), "time": "0"})
    for problem, environments in found.problems.items():
        place = problem.place or "configuration"
        attributes = {"classname": f"opero.check.{'+'.join(environments)}", "name": f"{place}: {problem.text}"}
        if problem.file is not None:
            attributes |= {"file": _relative(problem.file) or "", "line": str(problem.line or 1)}
        case = ElementTree.SubElement(suite, "testcase", {key: visible(text) for key, text in attributes.items()})
        case.set("time", "0")
        failure = ElementTree.SubElement(case, "failure", {"message": visible(problem.text), "type": "problem"})
        failure.text = visible(str(problem), keep="\n")
    if found.warnings:
        ElementTree.SubElement(suite, "system-out").text = visible("\n".join(found.warnings), keep="\n")
    ElementTree.indent(root)
    text = ElementTree.tostring(root, "unicode", xml_declaration=False)
    print('<?xml version="1.0" encoding="UTF-8"?>')
    print(text)


FORMATS: dict[str, Callable[[Findings], None]] = {
    "text": print_text,
    "json": print_as_json,
    "github": print_github,
    "sarif": print_sarif,
    "junit": print_junit,
}
