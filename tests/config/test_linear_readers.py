"""Everything that reads text takes time linear in its length, and says no more than fits on a few screens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from opero.cli.arguments import parse_value
from opero.config.report import MOST_PROBLEMS
from opero.config.schema import json_schema
from opero.config.settings import load
from opero.errors import ConfigError, nearest, readable
from opero.failures.waits import seconds_in
from opero.policies.json_text import parse_json
from opero.policies.quantities import fits, parse_duration, parse_rate, parse_size
from opero.runtime.dotenv_file import MOST_ADDED, lines_of

if TYPE_CHECKING:
    from pathlib import Path

ENOUGH = 0.05
"""Seconds of CPU from which on times are compared."""
MOST = 10.0
"""How many times longer a text of four times the length may take: 4 if it is linear, 16 if it is quadratic."""


def sizes(most: int) -> Iterator[int]:
    """Small steps first, in which exponential time is noticed before it is too long."""
    size = 16.0
    while size <= most:
        yield int(size)
        size *= 1.25 if size < 60 else 4


def check_is_linear(read: Callable[[int], object], most: int = 200_000) -> None:
    before = 0.0
    for size in sizes(most):
        times = []
        for _ in range(3):  # the least of some, as other programs run as well
            began = time.process_time()
            read(size)
            times.append(time.process_time() - began)
            if times[-1] < max(ENOUGH, MOST * before):
                break
        if before >= ENOUGH:
            assert min(times) < MOST * before, f"{before:.3f} s, and for the next size, {size}, {min(times):.3f} s"
            return
        before = min(times)


def patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        schema = list(schema.values())
    for each in schema if isinstance(schema, list) else ():
        yield from patterns(each)


PUMPED = [
    "0",
    "1",
    " ",
    "1 ",
    "0s",
    "1h",
    "0.0",
    "1e1",
    ".",
    "0d ",
    "a",
    "a.",
    "a:",
    "_",
    "*",
    "[",
    "µs",
    "\n",
    "0 s",
    "<",
]
AROUND = [("", "!"), ("1", "!"), ("1/", "!"), (" ", ""), ("1 ", "b!"), ("a:a", "!")]


@pytest.mark.parametrize("pattern", sorted(set(patterns(json_schema()))))
def test_patterns_of_the_schema_match_in_linear_time(pattern: str) -> None:
    for pump in PUMPED:
        for before, after in AROUND:
            check_is_linear(
                lambda size, pump=pump, before=before, after=after: fits(pattern, before + pump * size + after), 20_000
            )


@pytest.mark.parametrize("read", [parse_duration, parse_rate, parse_size, seconds_in, parse_value, readable])
def test_numbers_durations_rates_sizes_and_waits_are_read_in_linear_time(read: Callable[[str], object]) -> None:
    def attempt(text: str) -> None:
        try:
            told = str(read(text))
        except ValueError as error:
            told = str(error)
        assert len(told) < 2000 or read is parse_value

    for pump in [*PUMPED, "://", "secret", "'", '"', "\\", "\x1b", "@", "é"]:
        for before, after in AROUND:
            check_is_linear(lambda size, pump=pump, before=before, after=after: attempt(before + pump * size + after))


@pytest.mark.parametrize("pump", ["[", "{", '"', "\\", '{"a":', "1", "[]", '"\\"', "[1,"])
def test_json_is_read_in_linear_time(pump: str) -> None:
    def attempt(size: int) -> None:
        try:
            parse_json(pump * size)
        except ValueError as error:
            assert len(str(error)) < 500

    check_is_linear(attempt)


@pytest.mark.parametrize(
    "line",
    [
        "A=x\n",
        "A='x\n",
        'A="x\n',
        "A=${\n",
        "A=${A}x\n",
        "A=${A}${A}\n",
        "${",
        "A=${A:",
        "A=\\'\n",
        "A=x ",
        " ",
        "A=x\t\t",
        "A #\n",
        "\n",
        "=\n",
        "A='\\",
    ],
)
def test_env_files_are_read_in_linear_time_and_bounded_memory(line: str) -> None:
    def attempt(size: int) -> None:
        try:
            found = list(lines_of(f"A=xx\nB={line * size}}}\n{line * size}", {}))
        except ValueError as error:
            assert "spaces in a row" in str(error)
        else:
            expanded = sum(len(each.value or "") for each in found)
            assert expanded <= 3 * MOST_ADDED + 2 * size * len(line)

    check_is_linear(attempt, 50_000)


def test_references_that_double_a_value_in_each_line_are_refused_at_their_line(tmp_path: Path) -> None:
    file = tmp_path / "my.env"
    file.write_text("OPERO_A_RETRIES=xx\n" + "A=${A}${A}\n" * 3 + "B=12345678\n" + "B=${B}${B}\n" * 34)
    file.write_text(file.read_text() + "OPERO_ENV=${B}\n")
    with pytest.raises(ConfigError, match=r"my\.env:40:1 \(OPERO_ENV\): the references of this file add up to more"):
        load(environ={}, env_file=file)


def profiles(line: str) -> Callable[[int], str]:
    return lambda size: "policies:\n" + "".join(line.format(i=i, before=max(0, i - 1)) for i in range(size))


FILES: dict[str, Callable[[int], str]] = {
    "a long wrong text": lambda size: f"policies: {{a: {{retry: {'a' * size}}}}}",
    "a long line of names of secrets": lambda size: f"policies: {{a: {{retrx: {'secret-' * size}}}}}",
    "a long line of URLs": lambda size: f"policies: {{a: {{retry: {{retry_on: '{'://' * size}'}}}}}}",
    "a long line of quotes": lambda size: f'policies: {{a: {{retry: "{chr(92) * 2 * size}\'"}}}}',
    "a long key": lambda size: f"policies: {{a: {{{'k' * size}: 1}}}}",
    "a long key of a secret": lambda size: f"policies: {{a: {{{'secret=' * size}: 1}}}}",
    "a line of wrong fields": lambda size: f"policies: {{a: {{{', '.join(f'x{i}: 1' for i in range(size))}}}}}",
    "a line of wrong elements": lambda size: f"policies: {{a: {{retry: {{retry_on: [{'1, ' * size}]}}}}}}",
    "spaces": lambda size: f'policies: {{a: {{timeout: "1{" " * size}x"}}}}',
    "brackets": lambda size: f"policies: {'[' * size}",
    "braces": lambda size: f"policies: {'{a: ' * size}",
    "glob": lambda size: f"functions: {{'{'[' * size}': {{retry: 1}}}}",
    "modules": lambda size: f"import_from: [{', '.join(f'm{i}, 1' for i in range(size))}]",
    "an unclosed quote": lambda size: "policies: {a: {retry: 'x" + "\n  y" * size,
    "profiles": profiles("  p{i}: {{retry: 1}}\n"),
    "wrong profiles": profiles("  p{i}: {{retry: -1, secret: hunter2, cache: {{url: x}}}}\n"),
    "a chain of extends": profiles("  p{i}: {{extends: p{before}}}\n"),
    "unknown parents": profiles("  p{i}: {{extends: q{i}}}\n"),
    "duplicates": lambda size: "policies:\n" + "  a: {retry: 1}\n" * size,
    "wrong entries": lambda size: "functions:\n" + "".join(f"  'm{i}:f': {{policy: p{i}}}\n" for i in range(size)),
    "aliases": lambda size: "policies:\n  a: &a {retrx: 1}\n" + "".join(f"  b{i}: *a\n" for i in range(size)),
    "merge keys": lambda size: (
        "policies:\n"
        + "".join(f"  a{i}: &a{i} {{retry{i}: 1}}\n" for i in range(size))
        + f"  b: {{<<: [{', '.join(f'*a{i}' for i in range(size))}]}}\n"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_in_linear_time_with_bounded_messages(name: str, tmp_path: Path) -> None:
    def attempt(size: int) -> None:
        (tmp_path / "base.yaml").write_text(FILES[name](size))
        try:
            load(tmp_path, environ={})
        except ConfigError as error:
            assert len(error.problems) <= MOST_PROBLEMS + 1
            assert len(str(error)) < 2000 * len(error.problems)
            assert all(each.place for each in error.problems)

    check_is_linear(attempt, 4_000)


@pytest.mark.parametrize(
    "name", ["OPERO_X{i}", "OPERO_P{i}_RETRIES", "OPERO_POLICIES__P{i}__RETRY", "OPERO_P{i}_RETRIXS"]
)
def test_variables_are_read_in_linear_time(name: str, tmp_path: Path) -> None:
    def attempt(size: int) -> None:
        (tmp_path / "base.yaml").write_text(FILES["profiles"](size))
        environ = {name.format(i=i): "2" for i in range(size)}
        try:
            found = load(tmp_path, environ=environ)
        except ConfigError as error:
            assert len(error.problems) <= MOST_PROBLEMS + 1
        else:
            assert found.policies["p1"].retry.retries == (1 if found.ignored else 2)  # type: ignore[union-attr]

    check_is_linear(attempt, 4_000)


def test_secrets_of_an_env_file_are_read_in_linear_time(tmp_path: Path) -> None:
    def attempt(size: int) -> None:
        (tmp_path / "my.env").write_text("".join(f"S{i}=s{i}\n" for i in range(size)))
        values = ", ".join(f'"secret:S{i}"' for i in range(size))
        (tmp_path / "base.yaml").write_text(f"policies: {{a: {{fallback: {{arg: key, values: [{values}]}}}}}}")
        load(tmp_path, environ={}, env_file=tmp_path / "my.env")

    check_is_linear(attempt, 4_000)


def test_hints_are_found_in_bounded_time() -> None:
    check_is_linear(lambda size: nearest("a" * size, (f"{'a' * size}{each}" for each in range(20))))
    check_is_linear(lambda size: nearest("retries", (f"retry{each}" for each in range(size))))


@pytest.mark.parametrize(
    ("text", "environ", "place"),
    [
        ("policies: {a: {timeout: 9999999999}}", {}, "base.yaml:1:25: policies.a.timeout.total: 9999999999 is longer"),
        (f"policies: {{a: {{timeout: 0x{'f' * 6000}}}}}", {}, "base.yaml:1:25: is a number of more than 3,900 digits"),
        (f"policies: {{a: {{timeout: {'9' * 6000}}}}}", {}, "base.yaml:1:25: "),
        ("policies: {a: {fallback: {default: 1}}}", {"DEFAULT": "[" * 500 + "]" * 500}, "is nested deeper than 50"),
        ("policies: {a: {fallback: {default: 1}}}", {"DEFAULT": "[" * 100_000}, "is nested deeper than 50"),
        ("policies: {a: {fallback: {default: 1}}}", {"DEFAULT": "9" * 6000}, "has more than 3,900 digits"),
    ],
    ids=count(),
)
def test_numbers_and_depths_that_nothing_can_hold_are_refused_with_their_place(
    text: str, environ: dict[str, str], place: str, tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(text)
    variables = {f"OPERO_POLICIES__A__FALLBACK__{name}": value for name, value in environ.items()}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, environ=variables)
    (problem,) = caught.value.problems
    assert place in str(problem)
    assert not variables or problem.place in variables
    assert len(str(caught.value)) < 1000


def test_a_chain_of_extends_is_as_long_as_100_profiles(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(FILES["a chain of extends"](200).replace("{extends: p0}", "{retry: 1}", 1))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, environ={})
    (problem,) = caught.value.problems
    assert problem.text == "policies.p100 extends more than 100 profiles, one after the other; use fewer"
    assert problem.line == 102


@pytest.mark.parametrize("wait", ["9" * 20, f"{'9' * 20}d", "1e300", 10.0**300])
def test_no_wait_is_longer_than_100_years(wait: object) -> None:
    assert seconds_in(wait) == 36500 * 86400.0


@pytest.mark.parametrize(
    "wait",
    [f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT", f"{'9' * 20}-10-21T00:00:00Z", "9" * 6000, "inf", "nan", 10**400, "-1"],
    ids=count(),
)
def test_a_wait_that_is_none_is_none(wait: object) -> None:
    assert seconds_in(wait) is None
