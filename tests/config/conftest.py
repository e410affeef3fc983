"""A directory of policy files, written by each test as it needs them."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from opero.config.configuration import Configuration
from opero.config.settings import load
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
        error = caught.value
        assert "hunter2" not in str(error), "what tests call their secrets"
        assert all(each.text in str(error) for each in error.problems)
        return "\n".join(f"{each.place}: {each.text}" if each.place else each.text for each in error.problems)

    def problems(self, environment: str | None = None, **environ: str) -> list[str]:
        """Its lines, one a problem."""
        return self.error(environment, **environ).splitlines()


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policies:
    monkeypatch.chdir(tmp_path)
    return Policies(tmp_path / "policies")


@pytest.fixture(autouse=True)
def _no_variables_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("OPERO_ENV", "OPERO_CONFIG", "OPERO_ENABLED", "OPERO_ENV_FILE", "OPERO_SECRETS_DIR", "ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
