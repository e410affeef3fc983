"""What the documents have one paste runs and prints what they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import opero
from opero.policies.parallel import ParallelPolicy
from opero.policies.policy import FLAT_OPTIONS, KINDS
from pasted import paste

DOCS = Path(__file__).parents[2] / "docs"


PASTED = {"tutorial": 8, "adopting": 7, "coming-from": 5, "agents": 2, "http-clients": 7, "frameworks": 6, "recipes": 2}
"""The documents, with the numbers of their commands."""


@pytest.mark.parametrize(("name", "commands"), PASTED.items())
def test_its_programs_files_and_commands_do_what_it_shows(name: str, commands: int, tmp_path: Path) -> None:
    assert paste((DOCS / f"{name}.md").read_text(encoding="utf-8"), tmp_path) == commands


def test_the_options_that_other_libraries_translate_to_exist() -> None:
    fields = {field for model in KINDS.values() for field in model.model_fields}
    maps = {"journal", "progress", *ParallelPolicy.model_fields}
    sections = {"policies", "defaults", "extends", "policy"}
    known = fields | maps | sections | FLAT_OPTIONS.keys() | KINDS.keys() | {"backend"}
    rows = re.findall(r"^\| .* \| (.*) \|$", (DOCS / "coming-from.md").read_text(encoding="utf-8"), re.MULTILINE)
    code = " ".join(re.findall(r"`([^`]+)`", " ".join(rows)))
    named = set(re.findall(r'\b([a-z_]+)"?(?:=|: )', code))
    assert len(named) > 40
    assert named - known == set()


def test_the_errors_in_the_page_for_agents_are_those_of_opero() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)?", (DOCS / "agents.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 5
    for name, base in rows:
        error = getattr(opero, name)
        assert issubclass(error, opero.OperoError)
        assert not base or base in {each.__name__ for each in error.__mro__}
