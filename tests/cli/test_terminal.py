"""What commands print to a terminal."""

from __future__ import annotations

import pytest

from cli.conftest import Command

LONG = """\
    policies:
      a_profile_with_a_name_that_is_rather_long_for_a_column:
        retry: {retries: 3, retry_on: [ConnectionError, TimeoutError, json.JSONDecodeError]}
        cache: {ttl: 30m}
"""
SHORT = LONG.replace("retries: 3", "retries: 5").replace("30m", "31m")
COMMANDS = [
    ("diff", "development", "production"),
    ("env",),
    ("env", "--set"),
    ("explain", "--all", "a_profile_with_a_name_that_is_rather_long_for_a_column"),
]


def words(text: str) -> set[str]:
    return {word.strip("(),") for word in text.split()}


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_word_is_cut_at_the_edge_of_a_terminal(
    command: Command, columns: int, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command.policies(development=LONG, production=SHORT)
    monkeypatch.setenv("OPERO_A_PROFILE_WITH_A_NAME_THAT_IS_RATHER_LONG_FOR_A_COLUMN_RETRIES", "8")
    on_one_line = command(*arguments).out
    command.on_terminal(columns, monkeypatch)
    headings = {"section", "option", "variable", "source"}
    assert words(on_one_line) - headings <= words(command(*arguments).out)


def test_what_fits_is_a_table_and_what_does_not_is_a_block_for_each_row(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.on_terminal(140, monkeypatch)
    wide = command("diff", "development", "production").out.splitlines()
    assert wide[0].split() == ["section", "option", "development", "source", "production", "source"]
    command.on_terminal(60, monkeypatch)
    narrow = command("diff", "development", "production").out.splitlines()
    assert narrow[:3] == [
        "policies.api  retry.retries",
        "  development  3 (policies/base.yaml:5:22)",
        "  production   5 (policies/production.yaml:3:22)",
    ]
