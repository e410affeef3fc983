"""FastAPI and Starlette: answers to requests whose calls a policy has ended, and a lifespan that checks and watches.

app = FastAPI(lifespan=opero.integrations.starlette.lifespan)
opero.integrations.starlette.install(app)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse

from opero.errors import ConfigError
from opero.integrations.http_answers import ANSWERED, answer_to, configured

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

__all__ = ["configured", "install", "lifespan"]


def install(app: Starlette) -> None:
    """Answer requests whose calls a policy has ended, instead of with a 500.

    With 503 if the call was rejected, or all attempts have failed for a reason that passes, and with `Retry-After` if
    it is known when another call may succeed; with 504 if a timeout has ended it. The answer says nothing of the cause,
    which is in opero's logs. Handlers that the application adds for one of these exceptions afterwards replace these.

    Args:
        app: an application of FastAPI or Starlette.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(app, Starlette):
        raise ConfigError(
            f"install() expects an application of FastAPI or Starlette, not a value of type {type(app).__name__}"
        )
    for kind in ANSWERED:
        app.add_exception_handler(kind, _answer)


async def _answer(request: HTTPConnection, error: Any) -> JSONResponse:
    found = answer_to(error)
    if found is None:
        raise error
    status, headers = found
    return JSONResponse({"detail": status.phrase}, status.value, headers)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Check the configuration of the default registry when the application starts, and watch its files while it runs.

    An application that has a lifespan of its own puts `with configured():` around its `yield`.

    Raises:
        ConfigError: the configuration is invalid: the server does not start.
    """
    with configured():
        yield
