"""docs/cli.md describes every command, every option, and every key of the JSON output."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.conftest import Command
from opero.cli.app import COMMANDS

DOC = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
COMMON = ("--help", "--json", "--debug", "--env", "--config")
CALLS = {
    "init": ["new"],
    "check": [],
    "show": [],
    "explain": ["api"],
    "diff": ["development", "production"],
    "schema": ["-o", "schema.json"],
    "env": [],
    "call": ["builtins:len", '"abc"'],
    "map": ["builtins:len", "n.txt", "-o", "r.jsonl", "--mode", "thread"],
    "tune": ["builtins:len", "n.txt", "--seconds", "0.1"],
}


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_every_key_is_documented(command: Command, name: str) -> None:
    command.write("n.txt", "1\n2\n")
    text = section(name)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", command(name, "--help").out.partition("Options:")[2]))
    missing = {each for each in options - set(COMMON) if each not in text and each != "--output"}
    assert missing <= ({"--policy"} if name == "map" else set()), missing  # described at call
    ran = command(name, *CALLS[name], "--json")
    assert ran.code == 0, ran.err
    assert {key for key in ran.json if f'"{key}"' not in text} == set()
    for value in ran.json.values():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            assert {key for key in value[0] if f'"{key}"' not in text} == set()


def test_every_exit_code_is_documented() -> None:
    assert all(f"\n| {code} | " in DOC for code in (0, 1, 2, 130, 141, 143))
