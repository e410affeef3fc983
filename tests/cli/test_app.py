"""Behaviour that all commands share."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import opero
from cli.conftest import Command, environment, finished, start
from opero.cli.app import COMMANDS, run
from opero.cli.terminal import print_table


def test_help_lists_every_command_and_every_exit_code(command: Command) -> None:
    ran = command("--help")
    assert ran.code == 0
    assert all(f"\n  {name} " in ran.out for name in COMMANDS)
    assert all(f"\n    {code} " in ran.out for code in (0, 1, 2, 130, 141, 143))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_an_example_and_json_and_debug(command: Command, name: str) -> None:
    ran = command(name, "--help")
    assert ran.code == 0
    assert f"\n  opero {name}" in ran.out
    assert "--json" in ran.out or name == "run"  # what it prints is the program's
    assert "--debug" in ran.out


def test_no_summary_in_the_list_of_commands_is_truncated(command: Command) -> None:
    assert "..." not in command("--help").out.partition("Commands:")[2]


def test_version(command: Command) -> None:
    assert command("--version").out == f"opero {opero.__version__}\n"


def test_without_arguments_the_help_is_shown(command: Command) -> None:
    ran = command()
    assert ran.code == 2
    assert "Usage: opero" in ran.err


def test_an_unknown_command_is_a_usage_error(command: Command) -> None:
    ran = command("shwo")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: No such command 'shwo'")


def test_the_error_for_a_misspelt_command_suggests_the_nearest(command: Command) -> None:
    assert command("chekc", "--json").err.startswith("error: No such command 'chekc'; did you mean 'check'?\n")


def test_the_error_for_a_missing_argument_shows_the_usage(command: Command) -> None:
    ran = command("explain")
    assert ran.code == 2
    assert "Usage: opero explain" in ran.err


def test_an_invalid_configuration_is_reported_on_stderr_without_a_traceback(command: Command) -> None:
    command.policies(base="policies:\n  api:\n    retry: {retrys: 3}\n")
    ran = command("show")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: policies/base.yaml:3:13: unknown key 'retrys'")
    assert "Traceback" not in ran.err
    assert "^^^^^^" in ran.err


@pytest.mark.parametrize("arguments", [("--debug", "show", "nope"), ("show", "nope", "--debug")])
def test_debug_shows_the_traceback(command: Command, arguments: tuple[str, ...]) -> None:
    ran = command(*arguments)
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert "error: no profile 'nope'" in ran.err


def test_an_unexpected_error_suggests_debug(command: Command, monkeypatch: Any) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("opero.config.settings.load", broken)
    ran = command("show")
    assert ran.code == 2
    assert ran.err == ("error: ZeroDivisionError: by zero\nthis is an unexpected error; --debug shows its traceback\n")


def test_help_imports_neither_pydantic_nor_rich() -> None:
    code = """
        import sys
        from opero.cli.app import run
        run(["--help"])
        sys.exit(any(name in sys.modules for name in ("pydantic", "pydantic_settings", "yaml", "rich.console")))
    """
    subprocess.run([sys.executable, "-c", _dedent(code)], stdout=subprocess.DEVNULL, check=True, timeout=120)


def test_without_the_extra_the_error_says_how_to_install_it() -> None:
    code = """
        import sys

        class Blocked:
            def find_spec(self, name, *_):
                if name.partition(".")[0] == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Blocked())
        sys.argv = ["opero", "show"]
        from opero.cli import main
        main()
    """
    for missing in ("typer", "rich"):
        ran = subprocess.run(
            [sys.executable, "-c", _dedent(code.format(missing=missing))],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr == "opero: the command requires the extra cli: pip install 'opero[cli]'\n"


def _dedent(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


def test_a_broken_pipe_ends_the_command_silently_with_141(command: Command) -> None:
    profiles = "".join(f"  p{number}: {{retry: 1, cache: 5m}}\n" for number in range(1500))
    command.policies(base=f"policies:\n{profiles}")
    process = start("show", directory=command.directory)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    with process:
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(120) == 141


def test_colours_are_used_in_terminals_unless_no_color_is_set(command: Command, monkeypatch: Any) -> None:
    assert "\x1b" not in command("show", "nope").err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert "\x1b[1;31merror:\x1b[0m" in _coloured(command)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in _coloured(command)


def _coloured(command: Command) -> str:
    with pytest.MonkeyPatch.context() as patch:
        terminal = Terminal()
        patch.setattr(sys, "stderr", terminal)
        command("show", "nope")
        return terminal.getvalue()


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def table(columns: int, rows: Any) -> str:
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", terminal)
        print_table(["option", "value", "source"], rows)
    return terminal.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_tables_have_no_styles_without_colours(monkeypatch: Any, name: str, value: str) -> None:
    rows = [(("a", "b", "c"), "dim")]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in table(80, rows)
    monkeypatch.setenv(name, value)
    assert "\x1b" not in table(80, rows)


def test_a_narrow_table_wraps_between_words_if_possible(monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    place = "policies/production.yaml:15:22, policies.api"
    rows = [
        (("retry.retry_on", "[ConnectionError, TimeoutError, requests.HTTPError]", place), ""),
        (("retry.backoff_factor", "2.0", place), ""),
    ]
    words = " ".join(" ".join(cells) for cells, _ in rows).split()
    wide, narrow, narrowest = (table(columns, rows) for columns in (200, 80, 30))
    assert len(wide.splitlines()) == 3
    assert all(len(line.rstrip()) <= 80 for line in narrow.splitlines())
    assert set(words) <= set(narrow.split())
    assert set(words) <= {word.strip("()") for word in narrowest.split()}, "no word is cut"


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_are_treated_as_dev_null(command: Command, closed: str) -> None:
    for words, code in (("check", 0), ("show nope", 2), ("call builtins:len ab", 0), ("map builtins:len -", 0)):
        line = f"exec {sys.executable} -m opero {words} {closed}"
        ran = subprocess.run(
            ["sh", "-c", line],
            cwd=command.directory,
            env=environment(),
            stderr=subprocess.PIPE,
            check=False,
            text=True,
            timeout=120,
        )
        assert ran.returncode == code, (words, ran.stderr)
        assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("opero ex", 1, ["explain", "export"]),
        ("opero show --env ", 3, ["development", "production"]),
        ("opero show re", 2, ["reports"]),
        ("opero explain ", 2, ["api", "reports"]),
        ("opero diff p", 2, ["production"]),
        ("opero call app:f --policy a", 4, ["api"]),
        ("opero map app:f items --mode async", 5, ["async", "async_process"]),
    ],
)
def test_shell_completion_of_commands_environments_and_profiles(
    command: Command, monkeypatch: pytest.MonkeyPatch, words: str, position: int, expected: list[str]
) -> None:
    for name, value in (("_OPERO_COMPLETE", "complete_bash"), ("COMP_WORDS", words), ("COMP_CWORD", str(position))):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        run([])
    assert command.capsys.readouterr().out.split() == expected


def test_completion_prints_no_errors_of_the_configuration(command: Command) -> None:
    command.policies(base="policies: 3\n")
    environ = {"_OPERO_COMPLETE": "complete_bash", "COMP_WORDS": "opero show ", "COMP_CWORD": "2"}
    ran = finished(start(directory=command.directory, env=environ))
    assert (ran.out.strip(), ran.err) == ("", "")


def test_the_completion_script_of_a_shell_can_be_shown(command: Command) -> None:
    ran = finished(
        start(
            "--show-completion",
            "bash",
            directory=command.directory,
            env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        )
    )
    assert ran.code == 0
    assert "_OPERO_COMPLETE=complete_bash" in ran.out


def test_the_entry_point_and_the_main_module_exist() -> None:
    from opero.cli import main

    assert callable(main)
    assert (Path(opero.__file__).parent / "__main__.py").is_file()
