"""A directory of policy files, written by each test as it needs them."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from opero.config import Configuration, load
from opero.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class Policies:
    """Files in a directory `policies`, below the working directory, and what comes of loading them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, **files: str) -> None:
        """`write(base="...", production="...")`; a file's indentation may follow the test's."""
        self.directory.mkdir(exist_ok=True)
        for name, text in files.items():
            (self.directory / f"{name}.yaml").write_text(dedent(text).lstrip("\n"), "utf-8")

    def load(self, environment: str | None = None, **environ: str) -> Configuration:
        return load(self.directory, environment, environ)

    def error(self, environment: str | None = None, **environ: str) -> str:
        """The message of the ConfigError that loading raises."""
        with pytest.raises(ConfigError) as caught:
            self.load(environment, **environ)
        assert caught.value.__cause__ is None, "a cause would show pydantic's message, with secret input in it"
        assert caught.value.__context__ is None
        return str(caught.value)

    def problems(self, environment: str | None = None, **environ: str) -> list[str]:
        """Its lines, one a problem."""
        first, *rest = self.error(environment, **environ).splitlines()
        return [line.strip() for line in rest] or [first]


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policies:
    monkeypatch.chdir(tmp_path)
    return Policies(tmp_path / "policies")


@pytest.fixture(autouse=True)
def _no_variables_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("OPERO_ENV", "OPERO_CONFIG", "OPERO_ENABLED", "ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
