"""`.env` files: named pipes, and what quotes mean."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opero.config.settings import load
from opero.errors import ConfigError
from opero.runtime import named_pipe
from opero.runtime.dotenv_file import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.conftest import Policies

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture
def pipe(policies: Policies) -> Iterator[Path]:
    policies.write(base="policies: {api: {retry: 1}}")
    os.mkfifo(".env")
    yield Path(".env")
    named_pipe._contents.clear()


def writing(text: str) -> threading.Thread:
    thread = threading.Thread(target=lambda: Path(".env").write_text(text))
    thread.start()
    return thread


def retries() -> int:
    retry = load().policies["api"].retry
    assert retry is not None
    return retry.retries


@pytest.mark.usefixtures("pipe")
def test_an_env_file_may_be_a_named_pipe_that_is_written_once() -> None:
    writer = writing("OPERO_API_RETRIES=5\n" + "# long\n" * 20_000)  # more than a pipe holds
    assert retries() == 5
    writer.join()
    assert retries() == 5  # nothing is written again
    writer = writing("OPERO_API_RETRIES=6\n")
    while retries() != 6:  # until the writer has opened the pipe
        pass
    writer.join()


@pytest.mark.usefixtures("pipe")
def test_a_pipe_is_not_watched_as_each_look_at_its_content_changes_it() -> None:
    writer = writing("OPERO_API_RETRIES=5\n")
    assert Path(".env").absolute() not in load().watched
    writer.join()


@pytest.mark.usefixtures("pipe")
def test_a_pipe_that_nothing_writes_to_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_pipe, "PATIENCE", 0.05)
    with pytest.raises(ConfigError, match=r"\.env: cannot be read: nothing was written to this pipe within 0.05 s"):
        load()


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A='${B}'", "${B}"),
        ("export A = '${B}'", "${B}"),
        ("'A'='${B}'", "${B}"),
        ('A="${B}"', "x"),
        ("A=${B}", "x"),
        ("A=\"'${B}'\"", "'x'"),
        ("A=it's ${B}", "it's x"),
        ("\n\n  A='${B}' # comment", "${B}"),
    ],
)
def test_single_quotes_are_literal(line: str, value: str) -> None:
    (found,) = [each for each in lines_of(f"{line}\n", {"B": "x"}) if each.name]
    assert (found.name, found.value, found.unknown) == ("A", value, False)


@pytest.mark.parametrize("text", ["# nothing\n", "\n# a\n  # b\n---\n# c", "\ufeff# a\r\n\r\n# b\r\n"])
def test_a_policy_file_of_nothing_but_comments_is_an_empty_file(policies: Policies, text: str) -> None:
    policies.write(base="policies: {api: {retry: 1}}", production=EMPTY)
    (policies.directory / "production.yaml").write_text(text, newline="")
    found = policies.load("production")
    assert list(found.policies) == ["api"]


EMPTY = "policies: {}"


def test_an_env_file_of_nothing_but_comments_sets_nothing(policies: Policies) -> None:
    policies.write(base="policies: {api: {retry: 1}}")
    Path(".env").write_text("# nothing\n\n# OPERO_API_RETRIES=5\n")
    assert retries() == 1
