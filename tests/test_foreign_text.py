"""Text that opero did not write reaches messages, logs and terminals through the functions that prepare it."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opero import errors, opero
from opero.cli.terminal import json_text
from opero.errors import (
    AllFailedError,
    ConfigError,
    MapError,
    OperoError,
    Problem,
    describe,
    described,
    message_of,
    nearest,
    readable,
    visible,
    without_passwords,
)
from opero.events import AttemptFailed
from opero.observe.subscriptions import on
from opero.policies.policy import Policy

SOURCE = Path(__file__).parents[1] / "src" / "opero"
NASTY = "\x1b[2J\x07\x9b31m\u202e\u2028\r\x00\x7f\ud800"
STEERS = re.compile(r"[^\S \n]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# The places in the source

OWN = {
    "CircuitOpenError",
    "ConfigError",
    "MissingExtraError",
    "UsageError",
    "UnknownOptionError",
    "UnreadableError",
    "SerializationError",
    "WorkerDiedError",
    "NotReady",
}
"""Exceptions whose messages opero has written."""
RAW = {
    "cache/database.py": "compares it",
    "cli/app.py": "of an OperoError, which is of several lines",
    "cli/results.py": "the data of a result, in JSON",
    "config/location.py": "searches it for a place",
    "config/yaml_source.py": "reads the text of a file",
    "events.py": "the data of an event",
    "observe/receipts.py": "prepares it as the receipt shows texts",
    "parallel/transport/exceptions.py": "makes a copy of the exception",
    "parallel/engine/run.py": "of an exception that opero has made",
    "problems.py": "prepares it",
}
"""Files that read the text of an exception as it is, and why."""
PRINTS = {
    "cli/__init__.py": "a text of its own, when not even the printing functions can be loaded",
    "cli/call.py": "results, as JSON",
    "cli/findings.py": "each `Problem`, which is prepared, with styles; XML, whose texts are",
    "cli/export.py": "what is exported, to be redirected to a file",
    "cli/schema.py": "the schema, to be redirected to a file",
    "cli/site/sitecustomize.py": "a text of its own, where opero may not be installed",
    "cli/terminal.py": "the functions that prepare text",
}


def raw_texts(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the places where the text of a foreign exception is used as it is."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "text_of":
            yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.ExceptHandler) or node.name is None:
            continue
        names = {each.id for each in ast.walk(node.type or ast.Tuple([])) if isinstance(each, ast.Name)}
        if names and names <= OWN:
            continue
        for each in ast.walk(node):
            if isinstance(each, ast.FormattedValue):
                shown = each.value.values if isinstance(each.value, ast.BoolOp) else [each.value]
            elif isinstance(each, ast.Call) and ast.unparse(each.func) in ("str", "repr"):
                shown = each.args
            else:
                continue
            if any(isinstance(one, ast.Name) and one.id == node.name for one in shown):
                yield each.lineno, ast.unparse(each)


def prints(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and re.fullmatch(
            r"print|sys\.std(out|err)\.write|traceback\.print_\w+", ast.unparse(node.func)
        ):
            yield node.lineno, ast.unparse(node)


def places(find: Any, allowed: dict[str, str], under: str = "") -> list[str]:
    files = {file.relative_to(SOURCE).as_posix(): file for file in (SOURCE / under).rglob("*.py")}
    found = {name: list(find(ast.parse(file.read_text("utf-8")))) for name, file in files.items()}
    unused = [f"{name} does not need its exception" for name in allowed if not found.get(name)]
    return unused + [
        f"src/opero/{name}:{line}: {text}"
        for name, each in found.items()
        if name not in allowed and not name.startswith("testing/")
        for line, text in each
    ]


def test_every_text_of_an_exception_is_prepared() -> None:
    found = places(raw_texts, RAW)
    assert not found, "use describe, message_of or readable of opero.errors:\n" + "\n".join(found)


def test_commands_print_prepared_text() -> None:
    found = places(prints, PRINTS, "cli")
    assert not found, "use say, print_error, print_warning or print_table of opero.cli.terminal:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "try: f()\nexcept OSError as error:\n    raise ValueError(f'it failed: {error}')",
        "try: f()\nexcept OSError as error:\n    raise ValueError(f'it failed: {error.strerror or error}')",
        "try: f()\nexcept (OSError, ConfigError) as error:\n    raise ValueError(f'it failed: {error!r}')",
        "try: f()\nexcept OSError as error:\n    log(str(error))",
        "log(text_of(error))",
    ],
)
def test_a_text_that_is_not_prepared_is_found(text: str) -> None:
    assert len(list(raw_texts(ast.parse(text)))) == 1


# What prepares it


def test_foreign_text_is_one_visible_line_of_bounded_length() -> None:
    assert readable("one\ntwo\r\n\tthree") == "one two three"
    assert readable(NASTY) == r"\x1b[2J\x07\x9b31m\u202e \x00\x7f\ud800"
    assert len(readable("x\x1b" * 100_000)) == 1000
    assert len(readable("x" * 100_000, 50)) == 50
    assert readable("Grüße, 日本 🙂 naïve\u00a0x") == "Grüße, 日本 🙂 naïve x"
    assert visible("one\n\ttwo\x1b", keep="\n\t") == "one\n\ttwo\\x1b"


@pytest.mark.parametrize(
    "text",
    [
        "redis://user:hunter2@host/0",
        "redis://:hunter2@host",
        "cannot connect to 'redis://:hun/ter2@ho@host:1/2', 'redis://:hunter2@other'",
        "redis://:it's@hunter2@host",
        '{"url": "postgres://u:hunter2@host/db"}',
        "password='hunter2' refused",
        "{'api_key': 'hunter2'}",
        "GET /?token=hunter2&x=1",
        "Authorization: Bearer hunter2",
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    assert "hunter2" not in readable(text)
    assert "ter2" not in readable(text)
    assert "hunter2" not in describe(ValueError(text))
    assert "***" in readable(text)


def test_urls_without_a_password_stay_as_they_are() -> None:
    for text in ("https://host/path", "a://b c@d", "://@", "x@y", 'see https://host/x", and a@b'):
        assert without_passwords(text) == text


def test_exceptions_and_values_that_cannot_be_shown_have_a_placeholder() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    assert describe(OddError()) == "OddError: <unprintable OddError>"
    assert message_of(OddError()) == "<unprintable OddError>"
    assert described(OddError()) == "<unprintable OddError>"


def test_json_is_printed_with_escapes_that_mean_the_same() -> None:
    assert json_text('"é\x9b31\U000e0001"') == '"é\\u009b31\\udb40\\udc01"'


def made(kind: type[OperoError], message: str) -> OperoError:
    if issubclass(kind, MapError):
        return kind(message, {}, [])
    if issubclass(kind, AllFailedError):
        return kind(message, [ValueError()])
    return kind(message)


@pytest.mark.parametrize(
    "kind", [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, OperoError)]
)
def test_no_message_of_an_exception_steers_a_terminal(kind: type[OperoError]) -> None:
    error = made(kind, f"first\nsecond {NASTY}")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert not STEERS.search(str(each))
        assert str(each).startswith("first\nsecond \\x1b[2J")
    assert len(str(made(kind, "x" * 1_000_000))) <= errors.LONGEST_MESSAGE


def test_the_caret_of_a_problem_stands_below_what_it_means() -> None:
    problem = Problem("base.yaml:1:4", f"wrong {NASTY}", "base.yaml", 1, 4, "a\x1bbWRONG", 4, 5)
    message, line, carets = str(problem).replace(" \\u2028", "").splitlines()
    assert not STEERS.search(message)
    assert line.index("WRONG") == carets.index("^^^^^")


def test_hints_are_bounded() -> None:
    assert len(nearest("x" * 10, ["y" * 10_000] * 3)) < 200


# Messages that had secrets


def test_a_refused_result_and_its_arguments_are_not_shown() -> None:
    seen: list[Any] = []

    @opero(retries=1, min_delay=0, retry_if_result=bool)
    def pay(card: str) -> dict[str, str]:
        return {"card": card}

    off = on(AttemptFailed, lambda event: seen.append(event.error))
    with pytest.raises(AllFailedError) as caught:
        pay("4111 1111")
    off()
    assert "4111" not in str(caught.value)
    assert {str(each).partition("pay: ")[2] for each in seen} == {"retry_if_result rejected the result, of type dict"}
    assert seen[0].result == {"card": "4111 1111"}


def test_errors_of_policies_do_not_show_other_values() -> None:

    with pytest.raises(ConfigError) as caught:
        Policy(cache={"backend": "redis", "arguments": {"password": "hunter2"}, "serializer": "pickle", "ttl": 5})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Policy(retry={"retries": "redis://:hunter2@host"})
    assert "hunter2" not in str(caught.value)


# Commands


def test_names_in_files_and_variables_do_not_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from opero.cli.app import run

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "poli\x1bcies"
    folder.mkdir()
    nasty = r"a\e[31m\a\u202e\x9b"
    for name in ("base", "dev\x07el"):
        (folder / f"{name}.yaml").write_text(
            f'policies: {{"{nasty}": {{retry: 3, cache: {{ttl: 5, key_prefix: x}}}}, b: {{extends: "{nasty}"}}}}\n'
            f'functions: {{"{nasty}*": {{retry: 1}}}}\n'
        )
    (folder / "staging.yaml").write_text(
        f'policies: {{"{nasty}": {{"{nasty}": 3, retry: "{nasty}"}}, c: {{extends: "x{nasty}"}}}}\n'
    )
    monkeypatch.setenv("OPERO_CONFIG", str(folder))
    monkeypatch.setenv("OPERO_A_\x1b[31m_RETRIES", "5")
    monkeypatch.setenv("OPERO_SECRETS_DIR", str(tmp_path))
    (tmp_path / "OPERO_\x1bX").write_text("1")
    profile = "a\x1b[31m\x07\u202e\x9b"
    for command in (
        ["check", "--all-envs"],
        ["check", "--env", "staging"],
        ["check", "--json"],
        ["show"],
        ["show", profile],
        ["env"],
        ["explain", profile],
        ["explain", "no\x1bne"],
        ["diff", "staging", "development"],
        ["call", "json:no\x1bne"],
        ["call", "no\x1bmodule:f"],
        ["no\x1bcommand"],
        ["call", "json:loads", '"\x1b\\u009b"', "--kw", "\x1b"],
    ):
        run(command)
        printed = "".join(capfd.readouterr())
        assert printed, command
        assert not STEERS.search(printed), (command, printed)


def test_an_error_with_a_password_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from opero.cli.app import run

    class Client:
        @staticmethod
        def fail() -> None:
            raise ConfigError("cannot reach redis://:hun@ter2@host\x1b[31m")

    import json

    monkeypatch.setattr(json, "opero_client", Client, raising=False)
    assert run(["call", "json:opero_client.fail"]) == 2
    printed = "".join(capfd.readouterr())
    assert "cannot reach redis://***@host\\x1b[31m" in printed
