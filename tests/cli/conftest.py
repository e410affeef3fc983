"""Fixtures that run the command, in this process or in a subprocess, in a directory with policies."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import opero
from opero.binding.roster import Roster
from opero.cli.app import run
from opero.parallel.workers import process as pool
from opero.registry import default
from opero.registry.default import set_default_registry

POLICIES = {
    "base": """\
        defaults:
          retry: {min_delay: 0}
        policies:
          api:
            retry: {retries: 3}
            cache: {ttl: 30m}
          reports:
            extends: api
            timeout: 5s
    """,
    "development": """\
        policies: {}
    """,
    "production": """\
        policies:
          api:
            retry: {retries: 5}
            rate_limit: 50/s
    """,
}


@dataclass
class Ran:
    """The output and exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Return each line of the output as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class Command:
    """Runs the command in this process."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.capsys = capsys

    def __call__(self, *arguments: str) -> Ran:
        self.capsys.readouterr()
        code = run(arguments)
        captured = self.capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    def on_terminal(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let stdout pass for a terminal of this width, without colours."""
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("NO_COLOR", "1")

    def write(self, name: str, text: str) -> Path:
        """Write a dedented file in the working directory."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text), "utf-8")
        return path

    def policies(self, **files: str) -> None:
        for name, text in files.items():
            self.write(f"policies/{name}.yaml", text)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [each for each in os.environ if each.upper().startswith("OPERO_") or each == "ENVIRONMENT"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    made = Command(tmp_path, capsys)
    made.policies(**POLICIES)
    yield made
    for name in ("OPERO_ENV", "OPERO_CONFIG"):  # set by commands for their worker processes
        os.environ.pop(name, None)
    set_default_registry(None)
    pool.end_all()  # its workers know this directory's modules
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def environment() -> dict[str, str]:
    """Return the environment variables for a subprocess."""
    environ = {name: value for name, value in os.environ.items() if not name.upper().startswith("OPERO_")}
    environ.pop("ENVIRONMENT", None)
    return environ | {"PYTHONPATH": str(Path(opero.__file__).parents[1]), "COLUMNS": "120"}


def start(*arguments: str, directory: Path, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a subprocess."""
    return subprocess.Popen(
        [sys.executable, "-m", "opero", *arguments],
        cwd=directory,
        env=environment() | options.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished(process: subprocess.Popen[str], text: str | None = None) -> Ran:
    """Wait for a subprocess, and return its output and exit code."""
    with process:
        out, err = process.communicate(text, timeout=120)
    return Ran(process.returncode, out, err)


def on_terminal(directory: Path, columns: int, *arguments: str, **options: str) -> list[str]:
    """Return the lines that a command prints to a terminal of this width, without colours; `options` are variables."""
    ours, its = pty.openpty()
    environ = environment() | {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "xterm"} | options
    with subprocess.Popen(
        [sys.executable, "-m", "opero", *arguments], cwd=directory, env=environ, stdin=its, stdout=its, stderr=its
    ) as process:
        os.close(its)
        found = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # the command has ended
                break
            if not read:
                break
            found += read
        os.close(ours)
        assert process.wait(60) == 0
    return found.decode().replace("\r\n", "\n").splitlines()


@pytest.fixture(autouse=True)
def _empty_roster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore functions that other tests have decorated and that wait for the default registry."""
    monkeypatch.setattr(default, "_unclaimed", Roster())
