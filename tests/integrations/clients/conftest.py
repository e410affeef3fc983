"""Each client of HTTP, called in one way, so that a law is tested with all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import aiohttp
import httpx
import httpx2
import pytest
import requests

import opero.integrations.aiohttp
import opero.integrations.httpx
import opero.integrations.httpx2
import opero.integrations.requests
from integrations.clients.service import Service, running

NOW = {"min_delay": 0, "retries": 3}
"""Options for three retries without delays."""


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as service:
        yield service


class Answered(NamedTuple):
    """What a client has returned."""

    status: int
    body: bytes


class Client:
    """A client under a policy, called in the same way whichever it is.

    Attributes:
        make: the class by which a policy goes under it.
        timeout, error: the client's own classes of exceptions.
    """

    make: Any
    timeout: type[Exception]
    error: type[Exception]

    def __init__(self) -> None:
        self.under: Any = None

    @property
    def stats(self) -> Any:
        return self.under.bound.stats

    def use(self, *args: Any, **kwargs: Any) -> None:
        """Put it under a policy."""
        self.under = self.make(*args, **kwargs)

    def request(self, method: str, url: str, **options: Any) -> Answered:
        """Send a request; options are `headers` and `content`."""
        raise NotImplementedError

    def close(self) -> None:
        pass


class HttpxClient(Client):
    make = opero.integrations.httpx.Transport
    timeout, error = httpx.TimeoutException, httpx.TransportError
    module: Any = httpx

    def __init__(self) -> None:
        super().__init__()
        self.client: Any = None

    def request(self, method: str, url: str, **options: Any) -> Answered:
        self.client = self.client or self.module.Client(transport=self.under, follow_redirects=True)
        response = self.client.request(method, url, **options)
        return Answered(response.status_code, response.content)

    def close(self) -> None:
        if self.client is not None:
            self.client.close()


class Httpx2Client(HttpxClient):
    make = opero.integrations.httpx2.Transport
    timeout, error = httpx2.TimeoutException, httpx2.TransportError
    module = httpx2


class AsyncHttpxClient(Client):
    make = opero.integrations.httpx.AsyncTransport
    timeout, error = httpx.TimeoutException, httpx.TransportError
    module: Any = httpx

    def request(self, method: str, url: str, **options: Any) -> Answered:
        async def send() -> Answered:
            async with self.module.AsyncClient(transport=self.under, follow_redirects=True) as client:
                response = await client.request(method, url, **options)
                return Answered(response.status_code, response.content)

        if not isinstance(options.get("content"), bytes | list | None) and hasattr(options["content"], "__next__"):
            options["content"] = in_async(options["content"])
        return asyncio.run(send())


class AsyncHttpx2Client(AsyncHttpxClient):
    make = opero.integrations.httpx2.AsyncTransport
    timeout, error = httpx2.TimeoutException, httpx2.TransportError
    module = httpx2


class RequestsClient(Client):
    make = opero.integrations.requests.Adapter
    timeout, error = requests.Timeout, requests.RequestException

    def __init__(self) -> None:
        super().__init__()
        self.session = requests.Session()

    def request(self, method: str, url: str, **options: Any) -> Answered:
        self.session.mount("http://", self.under)
        response = self.session.request(method, url, data=options.pop("content", None), **options)
        return Answered(response.status_code, response.content)

    def close(self) -> None:
        self.session.close()


class AiohttpClient(Client):
    make = opero.integrations.aiohttp.Middleware
    timeout, error = aiohttp.ServerTimeoutError, aiohttp.ClientError

    def request(self, method: str, url: str, **options: Any) -> Answered:
        async def send() -> Answered:
            content = options.pop("content", None)
            if hasattr(content, "__next__"):
                content = in_async(content)
            async with (
                aiohttp.ClientSession(middlewares=[self.under]) as session,
                session.request(method, url, data=content, **options) as response,
            ):
                return Answered(response.status, await response.read())

        return asyncio.run(send())


async def in_async(items: Iterator[bytes]) -> AsyncIterator[bytes]:
    for each in items:
        yield each


CLIENTS: dict[str, Callable[[], Client]] = {
    "httpx": HttpxClient,
    "httpx-async": AsyncHttpxClient,
    "requests": RequestsClient,
    "aiohttp": AiohttpClient,
}


HTTPX2: dict[str, Callable[[], Client]] = {"httpx2": Httpx2Client, "httpx2-async": AsyncHttpx2Client}
"""These share all but the names of their classes with those of httpx."""


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """`client.use(policy)`, then `client.request(method, url)`."""
    client = CLIENTS[request.param]()
    yield client
    client.close()
