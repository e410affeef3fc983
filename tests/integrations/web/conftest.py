"""A registry with functions that work, fail and are rejected, and requests to whatever serves it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from opero import Policy, Registry
from opero.integrations import asgi, wsgi
from opero.registry.default import set_default_registry

PATIENCE = 60.0
TOKEN = "correct horse battery staple"


class Answer(NamedTuple):
    """A response."""

    status: int
    body: bytes
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
    """Send a request."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        named.setdefault("Content-Type", "application/json")
    request = Request(url, data, named, method=method)
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            return Answer(answer.status, answer.read(), answer.headers)
    except HTTPError as error:
        with error:
            return Answer(error.code, error.read(), error.headers)


def messages(url: str, count: int, **headers: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the first server-sent events of a stream: the id of each, and its data."""
    with closing(follow(url, **headers)) as stream:
        return list(islice(stream, count))


def follow(url: str, **headers: str) -> Generator[tuple[str, dict[str, Any]]]:
    """Yield the server-sent events of a stream: the id of each, and its data."""
    identity = ""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with build_opener(ProxyHandler({})).open(Request(url, headers=named), timeout=PATIENCE) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "id":
                identity = value
            elif name == "data":
                yield identity, json.loads(value)


def down(order: int) -> int:
    """A function that fails when it is told to."""
    if order < 0:
        raise ConnectionError("<img src=x onerror=alert(1)> down")
    return order


class Program:
    """A registry, and functions that are bound to its profiles.

    Attributes:
        registry: has the profile `api` with a circuit breaker and a rate limit, and the profile `quiet`.
        charge: bound to `api`; negative numbers fail.
        read: bound to `quiet`.
    """

    def __init__(self) -> None:
        api = Policy(
            retry={"retries": 1, "min_delay": 0},
            circuit_breaker={"consecutive_failures": 3, "open_for": "1h"},
            rate_limit={"rate": 1e6},
        )
        self.registry = Registry({"api": api, "quiet": Policy(retry=1)})
        self.charge: Any = self.registry.bind(down, "api")
        self.read: Any = self.registry.bind(lambda: 1, "quiet")

    def fail(self, times: int) -> None:
        for _ in range(times):
            with pytest.raises(Exception):  # noqa: PT011  # of whatever kind
                self.charge(-1)


@pytest.fixture(autouse=True)
def _no_variables_of_the_tester(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in [each for each in os.environ if each.upper().startswith("OPERO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def default(program: Program) -> Iterator[Program]:
    """The program, whose registry is the default one."""
    set_default_registry(program.registry)
    yield program
    set_default_registry(None)
    for site in (asgi.app._site, wsgi.app._site):
        for _ in range(int(PATIENCE / 0.05)):  # a server notices with its next message that a page has gone
            if not site._streams:
                break
            time.sleep(0.05)
        site.events.stop()
