"""Health, metrics and the live page as a WSGI app, to be mounted in Flask, Django and others.

    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/internal": opero.integrations.wsgi.app})

It serves what `opero.integrations.asgi` does, and is not protected by itself either. A page takes a thread of the
server while it is open; where a server has one thread only, it asks anew each second instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from opero.integrations.web.messages import LARGEST_BODY, HealthAsked, Request, Response, Updates
from opero.integrations.web.site import STREAM_LASTS, Site

if TYPE_CHECKING:
    from opero.health.monitor import HealthMonitor
    from opero.registry.registry import Registry

StartResponse = Callable[..., Any]


class WsgiApp:
    """The app.

    Args:
        registry: the registry to show. Default: the default registry.
        monitor: the health monitor whose checks are run. Default: one that knows the registry alone.
    """

    def __init__(self, registry: Registry | None = None, *, monitor: HealthMonitor | None = None) -> None:
        self._site = Site(registry, monitor)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request."""
        request = _request(environ)
        answer = answered(self._site, request, may_stream=bool(environ.get("wsgi.multithread")))
        if isinstance(answer, Response):
            start_response(f"{answer.status} {answer.reason}", answer.headers())
            return [b"" if request.method == "HEAD" else answer.body]
        start_response("200 OK", answer.headers())
        if request.method == "HEAD":
            answer.end()
            return []
        return Stream(answer, threading.Event())


def answered(site: Site, request: Request, *, may_stream: bool) -> Response | Updates:
    """Return what a request is answered with, health checks included."""
    answer = site.answer(request, may_stream=may_stream)
    if isinstance(answer, HealthAsked):
        return site.health(answer, site.monitor.run_all_health_checks_sync())
    return answer


class Stream:
    """The messages to a page, one each second.

    Args:
        updates: where they come from.
        stopping: ends the stream when it is set.
    """

    def __init__(self, updates: Updates, stopping: threading.Event) -> None:
        self._updates = updates
        self._stopping = stopping
        self._number = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        is_over = self._number == STREAM_LASTS or (self._number and not self._updates.goes_on)
        if is_over or self._stopping.wait(1.0 if self._number else 0.0):
            raise StopIteration
        self._number += 1
        return self._updates.next()

    def close(self) -> None:
        """End it; servers call this in any case."""
        self._updates.end()


def _request(environ: dict[str, Any]) -> Request:
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or name == "CONTENT_TYPE"
    }
    body = b""
    if environ["REQUEST_METHOD"] == "POST":
        length = environ.get("CONTENT_LENGTH") or "0"
        body = environ["wsgi.input"].read(min(int(length), LARGEST_BODY + 1) if length.isdecimal() else 0)
    path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
    return Request(
        environ["REQUEST_METHOD"],
        path,
        environ.get("SCRIPT_NAME", "").rstrip("/"),
        environ.get("QUERY_STRING", ""),
        headers,
        environ.get("REMOTE_ADDR", ""),
        body,
    )


app = WsgiApp()
"""The app for the default registry."""
