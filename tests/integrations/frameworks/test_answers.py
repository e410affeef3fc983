"""Web applications answer for opero's exceptions: each framework behind a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import django.conf
import fastapi
import flask
import httpx
import pytest
import uvicorn
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import opero.integrations.flask
import opero.integrations.starlette
from integrations.web.test_mounted import uvicorn_serves, werkzeug_serves
from opero import ConfigError, Policy, Registry, set_default_registry

RETRY = {"retries": 1, "min_delay": 0}


def fail(what: str) -> str:
    """Fail as a call under a policy does."""
    failing: dict[str, Callable[[], Any]] = {
        "open": OPEN,
        "slow": Policy(timeout={"total": 1e-9}, retry=RETRY).apply(lambda: None),
        "down": Policy(retry=RETRY).apply(raising(ConnectionError("secret"))),
        "busy": Policy(retry={**RETRY, "max_delay": 0.1}).apply(raising(ConnectionError(), BusyError())),
        "wrong": Policy(retry={**RETRY, "retry_on": [ValueError]}).apply(raising(ValueError("secret"))),
        "bug": raising(ZeroDivisionError()),
        "ok": lambda: None,
    }
    failing[what]()
    return "fine"


class BusyError(ConnectionError):
    retry_after = 7


def raising(*errors: Exception) -> Callable[[], Any]:
    """A function that raises one after the other, the last again and again."""
    left = list(errors)

    def function() -> Any:
        raise left.pop(0) if len(left) > 1 else left[0]

    return function


OPEN = Policy(circuit_breaker={"consecutive_failures": 1, "open_for": "1h"}).apply(raising(ConnectionError()))


@pytest.fixture(autouse=True)
def _open_circuit() -> None:
    with pytest.raises(Exception):  # noqa: PT011
        OPEN()


ANSWERS: dict[str, tuple[int, str | None]] = {
    "ok": (200, None),
    "open": (503, "some"),
    "slow": (504, None),
    "down": (503, None),
    "busy": (503, "7"),
    "wrong": (500, None),
    "bug": (500, None),
}


@pytest.fixture(scope="module")
def in_django() -> Iterator[None]:
    def view(request: Any, what: str) -> HttpResponse:
        return HttpResponse(fail(what))

    async def view_async(request: Any, what: str) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse(fail(what))

    urls = type("urls", (), {"urlpatterns": [path("<what>", view), path("async/<what>", view_async)]})
    values = {
        "ALLOWED_HOSTS": ["*"],
        "SECRET_KEY": "for tests",
        "LOGGING_CONFIG": None,
        "ROOT_URLCONF": urls,
        "MIDDLEWARE": ["opero.integrations.django.Middleware"],
    }
    settings = django.conf.settings
    if not settings.configured:
        settings.configure(SECRET_KEY="for tests", LOGGING_CONFIG=None)
    for name, value in values.items():  # another test of this process may have configured it
        setattr(settings, name, value)
    django.setup()
    yield
    settings.MIDDLEWARE = []


def fastapi_app() -> Any:
    app = fastapi.FastAPI()
    app.get("/{what}")(fail)
    opero.integrations.starlette.install(app)
    return app


def starlette_app() -> Any:
    async def view(request: Any) -> Any:
        return PlainTextResponse(fail(request.path_params["what"]))

    app = Starlette(routes=[Route("/{what}", view)])
    opero.integrations.starlette.install(app)
    return app


def flask_app() -> Any:
    app = flask.Flask(__name__)
    app.add_url_rule("/<what>", view_func=fail)
    opero.integrations.flask.install(app)
    return app


def check(url: str) -> None:
    for what, (status, wait) in ANSWERS.items():
        response = httpx.get(f"{url}/{what}", timeout=60)
        assert response.status_code == status, what
        assert "secret" not in response.text
        assert (response.headers.get("retry-after") is not None) == (wait is not None), what
        assert wait in (None, "some", response.headers.get("retry-after"))
        if status in (503, 504):
            assert response.json() == {"detail": {503: "Service Unavailable", 504: "Gateway Timeout"}[status]}


@pytest.mark.parametrize("make", [fastapi_app, starlette_app, flask_app])
def test_it_answers_for_rejections_and_timeouts(make: Any) -> None:
    app = make()
    with werkzeug_serves(app) if isinstance(app, flask.Flask) else uvicorn_serves(app) as url:
        check(url)


@pytest.mark.usefixtures("in_django")
def test_django_answers_for_rejections_and_timeouts() -> None:
    with werkzeug_serves(get_wsgi_application()) as url:
        check(url)
    with uvicorn_serves(get_asgi_application(), lifespan="off") as url:
        check(url)
        check(f"{url}/async")


@pytest.mark.parametrize("install", [opero.integrations.starlette.install, opero.integrations.flask.install])
def test_what_is_no_application_is_refused(install: Any) -> None:
    with pytest.raises(ConfigError, match="install\\(\\) expects"):
        install("app")


# The lifespan


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`loaded(text)` makes a registry of a file the default one; its path."""

    def load(text: str) -> Path:
        file = tmp_path / "base.yaml"
        file.write_text(text, encoding="utf-8")
        set_default_registry(Registry.load(tmp_path, "production", {}))
        return file

    yield load
    set_default_registry(None)


def test_a_server_reloads_files_while_it_runs(loaded: Callable[[str], Path]) -> None:
    file = loaded("policies: {api: {retry: {retries: 1}}}")
    app = fastapi.FastAPI(lifespan=opero.integrations.starlette.lifespan)
    registry = opero.get_default_registry()

    @app.get("/")
    def retries() -> int:
        return registry["api"].retry.retries  # type: ignore[union-attr]

    with uvicorn_serves(app) as url:
        assert httpx.get(url).json() == 1
        file.write_text("policies: {api: {retry: {retries: 5}}}", encoding="utf-8")
        for _ in range(600):
            if httpx.get(url).json() == 5:
                break
        assert httpx.get(url).json() == 5


def test_a_server_does_not_start_with_a_function_that_its_profile_does_not_fit(loaded: Callable[[str], Path]) -> None:
    loaded("policies: {api: {fallback: {arg: key}}}")

    @opero.opero(policy="api")
    def fetch(page: int) -> int:
        return page

    app = Starlette(lifespan=opero.integrations.starlette.lifespan)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, fd=listener.fileno(), log_level="error", ws="none"))
        with pytest.raises(SystemExit):
            server.run()
    assert fetch.binding.is_late
    assert not server.started
