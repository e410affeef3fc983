"""docs/cli.md describes every command, every option and every key of the JSON output; its transcripts are real."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path

import pytest

from cli.conftest import Command
from opero import serve
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
    "run": [],
    "tune": ["builtins:len", "n.txt", "--seconds", "0.1"],
    "export": ["alerts", "-o", "rules.yaml"],
    "top": [str(os.getpid())],
    "migrate": ["n.txt"],
}


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_every_key_is_documented(
    command: Command, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command.write("n.txt", "1\n2\n")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where processes are found
    text = section(name)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", command(name, "--help").out.partition("Options:")[2]))
    missing = {each for each in options - set(COMMON) if each not in text and each != "--output"}
    assert missing <= ({"--policy"} if name == "map" else set()), missing  # described at call
    if name == "run":  # what it prints is the program's
        return
    with serve(0) if name == "top" else nullcontext():
        ran = command(name, *CALLS[name], "--json")
    assert ran.code == 0, ran.err
    assert {key for key in ran.json if f'"{key}"' not in text} == set()
    for value in ran.json.values():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            assert {key for key in value[0] if f'"{key}"' not in text} == set()


def test_every_exit_code_is_documented() -> None:
    assert all(f"\n| {code} | " in DOC for code in (0, 1, 2, 130, 141, 143))


USERS = """\
    from opero import opero


    @opero(policy="api", retries=2)
    def get_user(name, upper=False):
        if name == "nobody":
            raise LookupError("there is no nobody")
        return {"name": name.upper() if upper else name}
"""


def transcripts() -> list[tuple[str, str]]:
    """Each command that the page shows, with what it prints."""
    blocks = re.findall(r"^    \$ (?:.*\n(?:    .*\n|\n(?=    (?!\$)))*)", DOC, re.MULTILINE)
    text = "".join(re.sub(r"^    ", "", block, flags=re.MULTILINE) + "\n" for block in blocks)
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)


TIMES = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:.]+(?= UTC)|^ +\d+\.\d{3}(?=  )|(?<=[ ])[\d.]+ m?s\b|(?<=configuration )[0-9a-f]{8}\b|"
    r"(?<=, )[\d.,]+(?= items a second)"
)
"""The times, rates and versions in a receipt or summary."""


def matches(printed: list[str], shown: list[str]) -> bool:
    """Whether lines are as shown, where "..." stands for any lines, and a time or version for any."""
    printed, shown = ([TIMES.sub("<time>", line) for line in lines] for lines in (printed, shown))
    pattern = "".join(r"(?:.*\n)*" if line.strip() == "..." else re.escape(line) + "\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def test_the_transcripts_are_what_the_commands_print(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(command.directory / "policies")
    command.write("app/__init__.py", "")
    command.write("app/users.py", USERS)
    command.write("names.txt", "ada\nbob\nnobody\n")
    run = 0
    for line, text in transcripts():
        words = shlex.split(line)
        variables = dict(words.pop(0).split("=", 1) for _ in takewhile(lambda word: "=" in word, list(words)))
        program, *arguments = words
        if "tune" in arguments:
            continue  # it measures
        if program == "cat":
            printed = (command.directory / arguments[0]).read_text("utf-8")
        else:
            with monkeypatch.context() as patch, breaking(command, arguments == ["check", "--all-envs"]):
                for name in ("OPERO_ENV", "OPERO_CONFIG"):  # which earlier commands set
                    patch.delenv(name, raising=False)
                for name, value in variables.items():
                    patch.setenv(name, value)
                done = command(*arguments)
            printed = done.out + done.err
        lines = [each.rstrip() for each in printed.rstrip().splitlines()]
        shown = [each.rstrip() for each in text.rstrip().splitlines()]
        assert matches(lines, shown), f"{line}:\n{printed}"
        run += 1
    assert run == 16


@contextmanager
def breaking(command: Command, is_broken: bool) -> Iterator[None]:
    """Misspell a key in production.yaml, for the transcript that shows a problem."""
    if not is_broken:
        yield
        return
    path = command.directory / "policies" / "production.yaml"
    correct = path.read_text("utf-8")
    path.write_text("{retires: 5".join(correct.rsplit("{retries: 5", 1)), "utf-8")
    yield
    path.write_text(correct, "utf-8")
