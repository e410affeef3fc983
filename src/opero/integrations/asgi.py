"""Health, metrics and the live page as an ASGI app, to be mounted in FastAPI, Starlette, Django and others.

    app.mount("/internal", opero.integrations.asgi.app)

serves /internal/health/live, /health/ready, /health, /metrics and the page, /internal/opero. The app is not protected
by itself: mount it where only operators can reach it. It checks the Host of requests only if `OPERO_HOSTS` is set, as
the server around it knows its own names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from opero.integrations.web.messages import LARGEST_BODY, Headers, HealthAsked, Request, Response, Updates
from opero.integrations.web.site import STREAM_LASTS, Site
from opero.runtime.async_library import await_within
from opero.runtime.clock import SYSTEM
from opero.runtime.hosts import AsyncHost
from opero.runtime.interruption import Expired

if TYPE_CHECKING:
    from opero.health.monitor import HealthMonitor
    from opero.registry.registry import Registry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AsgiApp:
    """The app. Runs under asyncio and trio.

    Args:
        registry: the registry to show. Default: the default registry.
        monitor: the health monitor whose checks are run. Default: one that knows the registry alone.
    """

    def __init__(self, registry: Registry | None = None, *, monitor: HealthMonitor | None = None) -> None:
        self._site = Site(registry, monitor)
        self._host = AsyncHost(SYSTEM)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _request(scope, receive)
        answer = await self._host.offload(self._site.answer, request)
        if isinstance(answer, HealthAsked):
            results = await self._site.monitor.run_all_health_checks()  # in the loop that clients of checks belong to
            answer = self._site.health(answer, results)
        if isinstance(answer, Response):
            await _start(send, answer.status, answer.headers())
            await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else answer.body})
            return
        try:
            await _start(send, 200, answer.headers())
            if request.method != "HEAD":
                await self._stream(answer, receive, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            answer.end()

    async def _stream(self, updates: Updates, receive: Receive, send: Send) -> None:
        for number in range(STREAM_LASTS):
            if number and await _is_gone(receive):
                return
            message = await self._host.offload(updates.next)
            await send({"type": "http.response.body", "body": message, "more_body": True})
            if not updates.goes_on:
                return


async def _is_gone(receive: Receive) -> bool:
    """Wait for a second, or until the client has gone; return whether it has."""
    until = SYSTEM.monotonic() + 1.0
    while (left := until - SYSTEM.monotonic()) > 0:
        try:
            message = await await_within(left, receive())
        except Expired:
            return False
        if message["type"] == "http.disconnect":
            return True
    return False


async def _request(scope: Scope, receive: Receive) -> Request:
    body = b""
    while scope["method"] == "POST" and len(body) <= LARGEST_BODY:
        message = await receive()
        body += message.get("body", b"")[: LARGEST_BODY + 1]
        if not message.get("more_body", False):
            break
    path, prefix = scope["path"], scope.get("root_path", "").rstrip("/")
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):  # as ASGI has it; some servers leave it out
        path = path[len(prefix) :]
    client = scope.get("client")
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    query = scope.get("query_string", b"").decode("latin-1")
    return Request(scope["method"], path, prefix, query, headers, client[0] if client else "", body)


async def _start(send: Send, status: int, headers: Headers) -> None:
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def _live(receive: Receive, send: Send) -> None:
    """Take part in the start and end of a server that serves nothing else."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


app = AsgiApp()
"""The app for the default registry."""
