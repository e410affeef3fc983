"""The README's programs, files and commands do what it shows, pasted in order into an empty directory."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\S+\.(?:py|yaml))\n")
UNNAMED = [text for kind, text in BLOCKS if kind == "python" and not NAMED.match(text)]
PRINTED = [
    ["3 attempts, the last: no route to host"],
    ["Ada, found with backup"],
    ["['page 0', 'page 1', 'page 2']", "closed"],
    ["{0: 0, 1: 10, 2: 20, 4: 40}", "[0, 10, 20, 30, 40]"],
    ['{"a": 1} TimeoutPolicy(total=1.0)'],
    ["59 seconds passed in no time"],
]


def environment() -> dict[str, str]:
    """The process's own, but for what configures opero and the language."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OPERO_") and name != "ENVIRONMENT"}
    return {**own, "LC_ALL": "C.UTF-8"}


def run(command: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=directory, env={**environment(), **variables}, capture_output=True, text=True, check=False
    )


def shell(command: str, directory: Path) -> str:
    """What a command of the README prints, with this Python as `python` and this package's `opero`."""
    variables = {}
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    programs = {"python": [sys.executable], "opero": [sys.executable, "-m", "opero"], "sed": ["sed"]}
    done = run([*programs[words[0]], *words[1:]], directory, **variables)
    assert done.stderr == "", command
    return done.stdout


def test_its_programs_files_and_commands_do_what_it_shows(tmp_path: Path) -> None:
    commands = 0
    for kind, text in BLOCKS:
        if named := NAMED.match(text):
            path = tmp_path / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif kind == "console":
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                assert shell(command, tmp_path).splitlines() == shown.splitlines(), command
                commands += 1
    assert commands == 7


@pytest.mark.parametrize(("code", "printed"), list(zip(UNNAMED, PRINTED, strict=True)))
def test_its_tour_runs_and_prints(code: str, printed: list[str], tmp_path: Path) -> None:
    program = tmp_path / "tour.py"
    program.write_text(code, encoding="utf-8")
    done = run([sys.executable, str(program)], tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == printed


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 9
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake (\w+)", README))
    assert {"demo", "test", "bench", "chaos"} == targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_its_extras_are_those_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) =", table, re.MULTILINE))
    install = README.partition("## Install")[2].partition("## ")[0]
    assert extras <= set(re.findall(r"\w+", install))
