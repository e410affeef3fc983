"""What a policy under a client costs a request: sending it under the policy, beside sending it to nowhere alone."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import requests
import yarl
from requests.adapters import BaseAdapter
from tests.benchmarks.harness import Row, compare

from opero import Policy
from opero.integrations.aiohttp import Middleware
from opero.integrations.httpx import AsyncTransport, Transport
from opero.integrations.requests import Adapter

MOST_MORE = 15_000.0
"""Nanoseconds that a request may take longer under a policy."""
POLICIES = {
    "retry": Policy(retry=3),
    "retry, breaker, limit, bulkhead": Policy(retry=3, circuit_breaker=5, rate_limit="1000000/s", bulkhead=100),
}
URL = "http://127.0.0.1/"


def respond(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"ok")


async def respond_async(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"ok")


class Stub(BaseAdapter):
    """Answers every request of requests."""

    def send(self, request: Any, **kwargs: Any) -> Any:
        response = requests.Response()
        response.status_code, response.request, response.url, response._content = 200, request, request.url, b"ok"
        response.raw = SimpleNamespace(_original_response=None, close=lambda: None, release_conn=lambda: None)
        return response

    def close(self) -> None:
        pass


async def handle(request: Any) -> Any:
    return SimpleNamespace(status=200, headers={})


def aiohttp_request() -> SimpleNamespace:
    """What a middleware reads of a request."""
    return SimpleNamespace(method="GET", url=yarl.URL(URL), headers={}, response=None, body=b"")


def more(name: str, ours: Any, theirs: Any, rounds: int, call: str = "call()") -> Row:
    """How much longer a request takes, beside what it may."""
    found = compare(name, ours, "", theirs, rounds, call=call)
    longer = found.ours - found.theirs
    return Row(f"{name}: more a request", longer, "15 µs", MOST_MORE, longer / MOST_MORE, target=1)


def run(rounds: int) -> list[Row]:
    with httpx.Client(transport=httpx.MockTransport(respond)) as client:
        rows = [compare("httpx: a request alone", lambda: client.get(URL), "itself", lambda: client.get(URL), rounds)]
    for what, policy in POLICIES.items():
        request = httpx.Request("GET", URL)
        mock, mock_async = httpx.MockTransport(respond), httpx.MockTransport(respond_async)
        under, under_async = Transport(policy, transport=mock), AsyncTransport(policy, transport=mock_async)

        def sent(transport: Any, request: httpx.Request = request) -> Any:
            return lambda: transport.handle_request(request)

        def sent_async(transport: Any, request: httpx.Request = request) -> Any:
            return lambda: transport.handle_async_request(request)

        rows.append(more(f"httpx, {what}", sent(under), sent(mock), rounds))
        rows.append(
            more(f"httpx async, {what}", sent_async(under_async), sent_async(mock_async), rounds, "await call()")
        )
        prepared, stub = requests.Request("GET", URL).prepare(), Stub()
        adapter = Adapter(policy, adapter=stub)
        rows.append(more(f"requests, {what}", partial(adapter.send, prepared), partial(stub.send, prepared), rounds))
        fake, middleware = aiohttp_request(), Middleware(policy)
        both = partial(middleware, fake, handle), partial(handle, fake)
        rows.append(more(f"aiohttp, {what}", *both, rounds, "await call()"))
    return rows
