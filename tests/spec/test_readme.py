"""The README's programs, files and commands do what it shows, pasted in order into an empty directory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pasted import NAMED, blocks, paste, run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
UNNAMED = [text for kind, text in blocks(README) if kind == "python" and not NAMED.match(text)]
PRINTED = [
    ["3 attempts, the last: no route to host"],
    ["Ada, found with backup"],
    ["['page 0', 'page 1', 'page 2']", "closed"],
    ["{0: 0, 1: 10, 2: 20, 4: 40}", "[0, 10, 20, 30, 40]"],
    ['{"a": 1} TimeoutPolicy(total=1.0)'],
    ["59 seconds passed in no time"],
]


def test_its_programs_files_and_commands_do_what_it_shows(tmp_path: Path) -> None:
    assert paste(README, tmp_path) == 10


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
    assert {"demo", "test", "docs", "bench", "chaos"} == targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_its_extras_are_those_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) =", table, re.MULTILINE))
    install = README.partition("## Install")[2].partition("## ")[0]
    assert extras <= set(re.findall(r"\w+", install))
