"""What tests/chaos/fuzz.py attacks: every reader of foreign text in opero, with valid examples of what it reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opero import ConfigError, Policy
from opero.cache.entry import Entry
from opero.cache.serializers import Codec, UnreadableError
from opero.cli.exits import UsageError
from opero.cli.functions import flat_options, parse_pairs, parse_value
from opero.cli.items import Items
from opero.config.schema import json_schema
from opero.config.settings import load
from opero.errors import nearest, readable
from opero.failures.statuses import response_failure, retry_after
from opero.failures.waits import LONGEST, asked_wait, headers_of, quota_wait, seconds_in
from opero.parallel.journal.journal import Journal
from opero.policies.json_text import parse_json
from opero.policies.quantities import fits, parse_duration, parse_rate, parse_size
from opero.runtime.dotenv_file import lines_of

ROOT = Path(__file__).parents[2]
LONG_MESSAGE = 4000
"""Characters that the message of one problem may have."""


def places_and_size(error: ConfigError) -> str:
    """What is wrong with a ConfigError about files and variables; "" if nothing."""
    if not error.problems:
        return f"an error without problems: {str(error)[:300]}"
    for each in error.problems:
        if not each.place:
            return f"a problem without a place: {str(each)[:300]}"
        if not all(map(str.isprintable, str(each).split("\n"))):
            return f"a problem that shows control characters: {str(each)[:300]!r}"
        if len(str(each)) > LONG_MESSAGE:
            return f"a problem of {len(str(each))} characters: {str(each)[:300]}"
    return ""


class Reader:
    """One reader: its examples, and how a text is read.

    Attributes:
        read: reads a text; returns what is wrong with how it did, "" or None if nothing.
        errors: those that it documents, beside ConfigErrors with places.
        most: characters of the longest text that is read to measure times.
    """

    def __init__(
        self,
        name: str,
        examples: list[str],
        read: Callable[[str], str | None],
        errors: tuple[type[BaseException], ...] = (),
        most: int = 50_000,
    ) -> None:
        assert examples, name
        self.name = name
        self.examples = examples
        self.read = read
        self.errors = errors
        self.most = most

    def attempt(self, text: str) -> str | None:
        """Read a text; return what is wrong, None if nothing."""
        try:
            return self.read(text) or None
        except ConfigError as error:
            if self.errors == (ConfigError,):
                return None
            return places_and_size(error) or None
        except self.errors as error:
            told = str(error)
            return f"a message of {len(told)} characters: {told[:300]}" if len(told) > LONG_MESSAGE else None
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:500]


# Examples


def texts(*patterns: str) -> list[str]:
    return [path.read_bytes().decode() for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def blocks(kind: str) -> list[str]:
    """The blocks of code of one language in the documentation."""
    return [
        found for text in texts("docs/*.md", "*.md") for found in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)
    ]


def quoted(pattern: str) -> list[str]:
    """What documentation, policies and tests write as such a text."""
    everything = "\n".join(texts("docs/*.md", "policies/*.yaml", "tests/policies/*.py", "tests/config/*.py"))
    return sorted(set(re.findall(pattern, everything)))


VARIABLES = [
    *quoted(r"OPERO_[A-Z][A-Z_]+=[^\s`\"']+"),
    *("OPERO_API_RETRIES=5", "OPERO_DEFAULTS_TIMEOUT=5s", "OPERO_POLICIES__API__RETRY__RETRIES=3"),
    *("OPERO_API_CACHE={ttl: 5m}", 'OPERO_API_RETRY={"retries": 3}', "OPERO_FUNCTIONS__APP_USERS_GET__RETRY=2"),
    *("OPERO_API_RETRY_ON=ConnectionError,TimeoutError", "OPERO_ENABLED=false", "OPERO_BATCH_MODE=process"),
]
DURATIONS = [*quoted(r"\b\d+(?:\.\d+)?(?:ms|s|m|h|d)\b"), "1h30m", "1.5 s", "500 ms", "2 days", "1e3"]
HEADERS = [
    *("retry-after: 120", "retry-after: Wed, 21 Oct 2026 07:28:00 GMT", "retry-after-ms: 1500"),
    *("x-ratelimit-reset: 1767225600", "x-ratelimit-remaining: 0", "ratelimit-reset: 30"),
    *("x-ratelimit-reset-requests: 6m0s", "x-ratelimit-reset-tokens: 20ms", "x-rate-limit-reset: 1767225600000"),
    *("anthropic-ratelimit-requests-reset: 2026-01-01T00:00:00Z", "anthropic-ratelimit-requests-remaining: 0"),
    "retry-after: 5\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 1d2h3m4.5s",
]

# Readers


def configuration(folder: Path) -> Iterator[Reader]:
    directory = folder / "policies"
    directory.mkdir()
    base = directory / "base.yaml"
    profiles = "policies: {api: {retry: 5}, batch: {extends: api}, db: {timeout: 5s}}\n"
    profiles += "functions: {'app.users:get': {policy: api}}\n"

    def yaml(text: str) -> None:
        base.write_bytes(text.encode("utf-8", "surrogatepass"))
        load(directory, environ={})

    def variables(text: str) -> None:
        base.write_text(profiles)
        pairs = (line.partition("=")[::2] for line in text.split("\n"))
        load(directory, environ={name: value for name, value in pairs if name and "\0" not in name + value})

    def env_file(text: str) -> None:
        base.write_text(profiles)
        (folder / "my.env").write_bytes(text.encode("utf-8", "surrogatepass"))
        load(directory, environ={}, env_file=folder / "my.env")

    def secret(text: str) -> None:
        base.write_text(profiles)
        (folder / "secrets").mkdir(exist_ok=True)
        (folder / "secrets" / "OPERO_API_RETRY").write_bytes(text.encode("utf-8", "surrogatepass"))
        load(directory, environ={}, secrets_dir=folder / "secrets")

    files = [*texts("policies/*.yaml", "tests/config/corpus/*.yaml", "examples/**/*.yaml"), *blocks("yaml")]
    yield Reader("YAML", files, yaml, most=16_000)
    yield Reader("variables", ["\n".join(VARIABLES[at : at + 3]) for at in range(len(VARIABLES))], variables)
    lines = [*VARIABLES, "# a comment", "export A='x y'", 'B="${A} \\n" # c', "OPERO_API_TIMEOUT=${A:-5s}"]
    yield Reader("env files", ["\n".join(lines[at:]) for at in range(len(lines))], env_file, (ValueError,), 16_000)
    yield Reader("secrets", ["5", "{retries: 3}", '{"retries": 3}'], secret)


def quantities() -> Iterator[Reader]:
    def number(read: Callable[[object], float]) -> Callable[[str], str | None]:
        return lambda text: None if read(text) >= 0 else "a negative number"

    def json(text: str) -> None:
        parse_json(text)

    def references(text: str) -> None:
        list(lines_of(text, {}))

    examples = {
        "durations": (DURATIONS, number(parse_duration)),
        "rates": (["10/s", "100/min", "0.5/s", "1_000/h", "10 / 2s", "7"], number(parse_rate)),
        "sizes": (["2GB", "512 MiB", "1.5e3", "100kB", "7"], number(parse_size)),
        "JSON": (['{"a": [1, 2.5, "x", null, true]}', "[]", "1e5"], json),
        "references": (["A=1\nB=${A}x\nC='${B}'"], references),
    }
    for name, (texts, read) in examples.items():
        yield Reader(name, texts, read, (ValueError,))

    def shown(text: str) -> str | None:
        nearest(text, ["retries", "timeout", text[:5]])
        return None if readable(text).isprintable() else f"controls are shown: {readable(text)!r}"

    yield Reader("shown texts", ["retrys", "\x1b[31mred", "a\nb", "https://u:p@h/x"], shown)


class Response:
    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status_code = status
        self.headers = headers


class ResponseError(Exception):
    def __init__(self, response: Response) -> None:
        super().__init__("refused")
        self.response = response


def headers_reader() -> Reader:
    def read(text: str) -> str | None:
        pairs = (line.partition(":")[::2] for line in text.split("\n"))
        headers = {name.strip().lower(): value.strip(" ") for name, value in pairs}
        look_up, response = headers_of(headers), Response(429, headers)
        failure = response_failure(response)
        waits = [*map(seconds_in, headers.values()), asked_wait(look_up), quota_wait(look_up)]
        waits += [retry_after(ResponseError(response)), None if failure is None else failure.retry_in]
        wrong = [wait for wait in waits if wait is not None and not 0 <= wait <= LONGEST]
        return f"waits {wrong}" if wrong else None

    return Reader("headers", HEADERS, read)


def journals(folder: Path) -> Iterator[Reader]:
    items = list(range(12))
    results: list[Any] = [1.5, "é", None, [1, {"a": 2}], (1, 2), {3}, b"x", 10**30, "\n", True, {"k": [0.1]}, "last"]

    def of(number: int) -> Any:
        if number == 7:
            raise ConnectionError("no answer")
        return results[number]

    secret = b"a secret of sixteen bytes or more"
    for name, own in (("signed journals", secret), ("journals", None)):
        path = folder / f"{name}.jsonl"
        cache = {"cache": {"secret": secret.decode()}} if own else {}
        bound: Any = Policy(parallel={"mode": "thread", "on_error": "return", "progress": False}, **cache).apply(of)
        bound.map(items, journal=path)
        written = path.read_bytes().decode("latin-1")
        function = re.search(r'"function": "([^"]+)"', written)
        assert function is not None

        def read(text: str, path: Path = path, own: bytes | None = own, name: str = function[1]) -> str | None:
            path.write_bytes(text.encode("latin-1", "replace"))
            with Journal(path, name, own) as journal:
                recalled = journal.recall(0, items)
                journal.failures()
                for index, outcome in recalled.outcomes.items():
                    if own and (outcome.value != results[index] or type(outcome.value) is not type(results[index])):
                        return f"a signed journal has item {index} as {outcome.value!r}"
            return None

        def with_place(text: str, read: Callable[[str], str | None] = read, path: Path = path) -> str | None:
            try:
                return read(text)
            except ConfigError as error:
                return None if str(path) in str(error) and len(str(error)) < LONG_MESSAGE else f"without place: {error}"

        yield Reader(name, [written], with_place)


def entries() -> Reader:
    values = [{"a": [1, 2.5, None]}, "é" * 30, [1, 2], 10**20]
    codecs = [Codec("json"), Codec("pickle"), Codec("signed_pickle", b"a secret of sixteen bytes or more")]
    made = {}
    for number, codec in enumerate(codecs):
        for value in values:
            data = codec.encode("key", Entry(value, 1e10, 1e10, 2e10), (b"12345678",), written=1e9)
            made[str(number) + data.decode("latin-1")] = value
    all_values = list(made.values())

    def read(text: str) -> str | None:
        data = text[1:].encode("latin-1", "replace")
        codec = codecs[int(text[:1]) % 3 if text[:1] in ("0", "1", "2") else 0]
        entry, _ = codec.decode("key", data, 1e9)
        return None if entry.value in all_values else f"reads as {entry.value!r}"

    return Reader("cache entries", list(made), read, (UnreadableError,))


def schema_patterns() -> Iterator[Reader]:
    found: set[str] = set()
    stack: list[Any] = [json_schema()]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            found |= {node["pattern"]} if isinstance(node.get("pattern"), str) else set()
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    examples = [
        *DURATIONS,
        "10/s",
        "100/min",
        "5%",
        "2GB",
        "auto",
        "app.users:get_*",
        "requests.HTTPError?",
        "json:loads",
    ]
    for number, pattern in enumerate(sorted(found)):

        def read(text: str, pattern: str = pattern) -> str | None:
            return None if fits(pattern, text) in (True, False) else "neither fits nor not"

        yield Reader(f"pattern {number} of the schema", examples, read, most=20_000)


def command_line(folder: Path) -> Iterator[Reader]:
    values = ['{"a": 1}', "5", "x=y", "[1, 2]", "retries=3", "retry_on=ValueError,OSError", "timeout=5s", "'a'"]
    yield Reader("values of the command line", values, lambda text: parse_value(text) and None)

    def pairs(text: str) -> None:
        parse_pairs(text.split("\n"), "--arg")
        flat_options(text.split("\n"))

    yield Reader("pairs of the command line", ["\n".join(values), *values], pairs, (UsageError,))
    for form, example in (("jsonl", '{"a": 1}\n[2]\n"x"\n'), ("csv", 'a,b\n1,"x\ny"\n2,z\n'), ("lines", "a\nb\r\n\nc")):

        def items(text: str, form: str = form) -> str | None:
            path = folder / f"items.{form}"
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            try:
                for _ in Items(str(path), form):
                    pass
            except UsageError as error:
                return None if re.match(r".*items\.\w+:\d+: ", str(error)) else f"without a place: {error}"
            return None

        yield Reader(f"items as {form}", [example], items)


def readers(folder: Path) -> list[Reader]:
    return [
        *configuration(folder),
        *quantities(),
        headers_reader(),
        *journals(folder),
        entries(),
        *schema_patterns(),
        *command_line(folder),
    ]
