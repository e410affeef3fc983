"""Documents whose blocks are pasted, in order, into an empty directory.

A block of Python or YAML that begins with a comment that names a file is that file. In a block of the language
`console` the lines after `$ ` are commands, and the others what they print; `...` at the end of a line stands for the
rest of it, and a last line of nothing else for all that follows. Commands that end with `2>&1` print their errors too.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\S+\.(?:py|yaml))\n")
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
BOTH = " 2>&1"
PROGRAMS = {"python": [sys.executable], "opero": [sys.executable, "-m", "opero"], "sed": ["sed"]}


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the text of each block."""
    return BLOCK.findall(text)


def environment() -> dict[str, str]:
    """The process's own, but for what configures opero, the language and plugins of pytest."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OPERO_") and name != "ENVIRONMENT"}
    return {**own, "LC_ALL": "C.UTF-8", "PYTEST_ADDOPTS": "-p no:asyncio"}


def run(command: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def shell(command: str, directory: Path) -> str:
    """What a command prints, with this Python as `python` and this package's `opero`."""
    variables = {}
    words = shlex.split(command.removesuffix(BOTH))
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    done = run([*PROGRAMS[words[0]], *words[1:]], directory, **variables)
    if command.endswith(BOTH):
        return done.stdout + done.stderr
    assert done.stderr == "", command
    return done.stdout


def is_shown(printed: str, shown: str) -> bool:
    lines = printed.splitlines(), shown.splitlines()
    if lines[1][-1:] == ["..."]:
        del lines[1][-1], lines[0][len(lines[1]) :]
    return len(lines[0]) == len(lines[1]) and all(
        line.startswith(start.removesuffix("...")) if start.endswith("...") else line == start
        for line, start in zip(*lines, strict=True)
    )


def paste(text: str, directory: Path) -> int:
    """Write the files and run the commands of a document, and return the number of the commands.

    Raises:
        AssertionError: a command prints something else.
    """
    commands = 0
    for kind, block in blocks(text):
        if named := NAMED.match(block):
            path = directory / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block, encoding="utf-8")
        elif kind == "console":
            for command, shown in COMMAND.findall(block):
                printed = shell(command, directory)
                assert is_shown(printed, shown), f"{command}\n{printed}"
                commands += 1
    return commands
