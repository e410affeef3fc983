"""Notes each request that the clients of a program send: what `opero init --from` makes policies of.

Only hosts are noted, neither paths nor headers nor bodies. A line of JSON is appended for each request, by one write,
so that processes of the program share the file, and none of it is lost if one is killed.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opero.failures import failure_of, response_failure
from opero.failures.reading import read
from opero.integrations.client_imports import replace_method

if TYPE_CHECKING:
    from types import ModuleType

URLLIB = "urllib.request:urlopen"
TARGETS = ("aiohttp", "httpx", "httpx2", "requests", "urllib.request")
"""The modules whose requests are noted. Clients of model APIs send theirs by httpx or httpx2."""


class RequestLog:
    """Appends what clients send to a file.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def watch(self, module: ModuleType) -> None:
        """Note the requests of a library that has just been imported."""
        library: Any = module
        name = module.__name__
        if name == "requests":
            replace_method(library.adapters.HTTPAdapter, "send", partial(self._noted, name))
        elif name == "aiohttp":
            replace_method(library.ClientSession, "_request", self._noted_session)
        elif name == "urllib.request":
            replace_method(library, "urlopen", self._noted_urlopen)
        else:
            replace_method(library.HTTPTransport, "handle_request", partial(self._noted, name))
            replace_method(library.AsyncHTTPTransport, "handle_async_request", partial(self._noted_async, name))

    def _noted(self, library: str, original: Any) -> Any:
        def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            note = _Note(self, library, request)
            with note:
                note.response = original(client, request, *args, **kwargs)
            return note.response

        return send

    def _noted_async(self, library: str, original: Any) -> Any:
        async def send(client: Any, request: Any) -> Any:
            note = _Note(self, library, request)
            with note:
                note.response = await original(client, request)
            return note.response

        return send

    def _noted_session(self, original: Any) -> Any:
        async def middleware(request: Any, handler: Any) -> Any:
            note = _Note(self, "aiohttp", request)
            with note:
                note.response = await handler(request)
            return note.response

        async def request(session: Any, *args: Any, middlewares: Any = None, **kwargs: Any) -> Any:
            chosen = session._middlewares if middlewares is None else middlewares
            return await original(session, *args, middlewares=(*chosen, middleware), **kwargs)

        return request

    def _noted_urlopen(self, original: Any) -> Any:
        from urllib.request import Request

        def urlopen(url: Any, data: Any = None, *args: Any, **kwargs: Any) -> Any:
            request = url if isinstance(url, Request) and data is None else Request(getattr(url, "full_url", url), data)
            if request.type not in ("http", "https"):
                return original(url, data, *args, **kwargs)
            note = _Note(self, URLLIB, request)
            with note:
                note.response = original(url, data, *args, **kwargs)
            return note.response

        return urlopen

    def append(self, entry: dict[str, Any]) -> None:
        # Opened each time: a program that becomes a daemon closes all files. The folder goes when `opero init` ends.
        with suppress(OSError), open(self._path, "ab", buffering=0) as file:
            file.write(json.dumps(entry).encode() + b"\n")


class _Note:
    """One request, noted when it ends."""

    def __init__(self, log: RequestLog, library: str, request: Any) -> None:
        self.response: Any = None
        self._log = log
        self._library = library
        self._request = request

    def __enter__(self) -> None:
        self._started, self._began = time.time(), time.perf_counter()

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        seconds = time.perf_counter() - self._began
        if error is not None and not isinstance(error, Exception):
            return  # cancelled, or the program ends
        failure = response_failure(self.response) if error is None else failure_of(error)
        request = self._request
        method = request.get_method() if hasattr(request, "get_method") else read(request, "method")
        entry = {
            "library": self._library_of(),
            "host": _host_of(read(request, "full_url") or read(request, "url")),
            "method": str(method),
            "started": self._started,
            "seconds": seconds,
        }
        if failure is not None:
            entry |= {"kind": failure.kind.value, "reason": failure.reason, "wait": failure.retry_in}
        self._log.append(entry)

    def _library_of(self) -> str:
        """Return the library whose client has sent the request: that of a model API says so of itself."""
        headers = read(self._request, "headers")
        if self._library in ("httpx", "httpx2") and "x-stainless-lang" in headers:
            agent = headers.get("user-agent", "")
            for library, name in (("openai", "OpenAI/"), ("anthropic", "Anthropic/")):
                if name in agent:
                    return library
        return self._library


def _host_of(url: Any) -> str:
    parts = urlsplit(str(url))
    try:
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return str(parts.hostname)
