"""The apps in FastAPI, Starlette, Flask and Django, below a prefix, each behind a real server on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import uvicorn
from werkzeug.serving import make_server as make_werkzeug

from integrations.web.conftest import PATIENCE, TOKEN, Program, ask, follow, messages
from opero import HealthMonitor
from opero.integrations import asgi, wsgi

Serving = Callable[[Any], AbstractContextManager[str]]


@contextmanager
def uvicorn_serves(app: Any, **options: Any) -> Iterator[str]:
    """Yield the address of a server."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    waited = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if server.started:
            break
        waited.wait(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "streams do not keep a server from ending"


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def wsgiref_serves(app: Any) -> Iterator[str]:
    """Yield the address of a server with one thread."""
    server = make_server("127.0.0.1", 0, app, handler_class=_Quiet, server_class=WSGIServer)
    server.base_environ["wsgi.multithread"] = False
    app_of_server = server.get_app()

    def single(environ: dict[str, Any], start_response: Any) -> Any:
        return app_of_server({**environ, "wsgi.multithread": False}, start_response)

    server.set_app(single)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


@contextmanager
def werkzeug_serves(app: Any) -> Iterator[str]:
    """Yield the address of a server with a thread for each request."""
    server = make_werkzeug("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


def in_starlette(program: Program) -> AbstractContextManager[str]:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return uvicorn_serves(Starlette(routes=[Mount("/internal", asgi.app)]))


def in_fastapi(program: Program) -> AbstractContextManager[str]:
    from fastapi import FastAPI

    app = FastAPI()
    app.mount("/internal", asgi.app)
    return uvicorn_serves(app)


def in_django(program: Program) -> AbstractContextManager[str]:
    """Django's ASGI app beside opero's, as its documentation has it."""
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    values = {"ALLOWED_HOSTS": ["*"], "ROOT_URLCONF": __name__, "SECRET_KEY": "for tests", "LOGGING_CONFIG": None}
    if not settings.configured:
        settings.configure(**values)
    for name, value in values.items():
        setattr(settings, name, value)  # another test of this process may have configured it
    django_app: Any = get_asgi_application()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/internal/"):
            await asgi.app({**scope, "root_path": "/internal"}, receive, send)
        elif scope["type"] == "http":
            await django_app(scope, receive, send)

    return uvicorn_serves(app, lifespan="off")


urlpatterns: list[Any] = []
"""Those of Django's app."""


def in_flask(program: Program) -> AbstractContextManager[str]:
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    app = Flask(__name__)
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/internal": wsgi.app})  # type: ignore[method-assign]
    return werkzeug_serves(app)


def in_django_wsgi(program: Program) -> AbstractContextManager[str]:
    from django.core.wsgi import get_wsgi_application
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    in_django(program)  # configures it
    return wsgiref_serves(DispatcherMiddleware(get_wsgi_application(), {"/internal": wsgi.app}))


MOUNTS = [in_starlette, in_fastapi, in_django, in_flask, in_django_wsgi]


@pytest.mark.parametrize("mounted", MOUNTS)
def test_every_route_answers_below_the_prefix(default: Program, mounted: Callable[[Program], Any]) -> None:
    default.charge(1)
    with mounted(default) as server:
        base = f"{server}/internal"
        assert ask(f"{base}/health/live").json == {"status": "alive"}
        assert ask(f"{base}/health/ready").json["ready"] is True
        assert "api.circuit_breaker" in ask(f"{base}/health").json["checks"]
        page = ask(f"{base}/opero")
        assert page.status == 200
        assert b"<title>opero</title>" in page.body
        assert ask(f"{base}/").body == page.body, "the root of the mount leads to the page"
        state = ask(f"{base}/opero/state.json").json
        assert state["functions"]["integrations.web.conftest:down"]["calls"] == 1
        [(_, first), (_, second)] = _two_messages(f"{base}/opero/events")
        assert first["whole"]
        assert not second["whole"]
        options = ask(f"{base}/opero/explain.json?target=api").json["options"]
        assert {"option": "retry.retries", "value": "1", "source": "code", "section": "policies.api"}.items() <= next(
            each for each in options if each["option"] == "retry.retries"
        ).items()
        assert ask(f"{base}/opero", "HEAD").body == b""
        assert ask(f"{base}/nowhere").status == 404
        assert ask(f"{server}/opero").status == 404, "nothing outside of the prefix"


def _two_messages(url: str) -> list[Any]:
    """Return two messages, of one stream or, where a server has one thread only, of two."""
    found = messages(url, 2)
    return found if len(found) == 2 else [*found, *messages(url, 1, Last_Event_ID=found[0][0])]


@pytest.mark.parametrize("mounted", MOUNTS)
def test_actions_work_below_the_prefix(
    default: Program, mounted: Callable[[Program], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERO_TOKEN", TOKEN)
    default.charge(1)
    with mounted(default) as server:
        order = {"action": "force_open", "target": "api"}
        url = f"{server}/internal/opero/actions"
        assert ask(url, "POST", order).status == 401
        assert ask(url, "POST", order, Authorization=f"Bearer {TOKEN}", Origin=server).json == {
            "done": "forced open: api"
        }
        assert ask(url, "POST", order, Authorization=f"Bearer {TOKEN}", Origin="http://evil.example").status == 403


def test_a_mounted_app_checks_hosts_only_if_some_are_listed(default: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_starlette(default) as server:
        url = f"{server}/internal/health/live"
        assert ask(url, Host="example.org").status == 200, "its own server knows its names"
        monkeypatch.setenv("OPERO_HOSTS", "example.org")
        assert ask(url, Host="example.org").status == 200
        assert ask(url, Host="evil.example").status == 421


def test_a_prefix_that_the_server_knows_alone(default: Program) -> None:
    with uvicorn_serves(asgi.app, root_path="/behind/a/proxy") as server:
        assert ask(f"{server}/health/live").json == {"status": "alive"}
        assert ask(f"{server}/opero").status == 200


def test_a_page_that_is_left_ends_its_stream(default: Program) -> None:
    with in_starlette(default) as server:
        for _ in range(20):  # more than are allowed at once
            stream = follow(f"{server}/internal/opero/events")
            next(stream)
            stream.close()
        assert len(messages(f"{server}/internal/opero/events", 3)) >= 1


def test_checks_of_an_async_server_run_in_its_loop(program: Program) -> None:
    monitor = HealthMonitor(program.registry)
    loops: list[Any] = []

    async def ping() -> None:
        loops.append(asyncio.get_running_loop())

    monitor.register_health_check("database", ping)
    app = asgi.AsgiApp(program.registry, monitor=monitor)

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            loops.append(asyncio.get_running_loop())
        await app(scope, receive, send)

    with uvicorn_serves(noted) as server:
        assert ask(f"{server}/health").json["checks"]["database"]["status"] == "healthy"
    assert loops[0] is loops[1]


def test_under_trio(default: Program) -> None:
    import trio

    sent: list[Any] = []

    async def main() -> None:
        for path in ("/health", "/opero/events"):
            beginning: list[Any] = [{"type": "http.request"}]

            async def receive(beginning: list[Any] = beginning) -> Any:
                if not beginning:
                    await trio.sleep(0.01)
                return beginning.pop() if beginning else {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            await asgi.app({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)

    trio.run(main)
    starts = [each for each in sent if each["type"] == "http.response.start"]
    assert [each["status"] for each in starts] == [200, 200]
    assert any(each.get("body", b"").startswith(b"retry: 1000\nid: ") for each in sent)


def test_where_too_many_pages_are_open_each_message_is_asked_for(default: Program) -> None:
    with in_flask(default) as server:
        url = f"{server}/internal/opero/events"
        streams = [follow(url) for _ in range(8)]
        try:
            for each in streams:
                next(each)
            assert len(messages(url, 2)) == 1, "it ends after one"
        finally:
            for each in streams:
                each.close()
