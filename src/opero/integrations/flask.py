"""Flask: answers to requests whose calls a policy has ended: `opero.integrations.flask.install(app)`."""

from __future__ import annotations

from typing import Any

import flask

from opero.errors import ConfigError
from opero.integrations.http_answers import ANSWERED, answer_to, configured

__all__ = ["configured", "install"]


def install(app: flask.Flask | flask.Blueprint) -> None:
    """Answer requests whose calls a policy has ended, instead of with a 500.

    With 503 if the call was rejected, or all attempts have failed for a reason that passes, and with `Retry-After` if
    it is known when another call may succeed; with 504 if a timeout has ended it. The answer says nothing of the cause,
    which is in opero's logs.

    Args:
        app: an application or a blueprint.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(app, flask.Flask | flask.Blueprint):
        raise ConfigError(f"install() expects a Flask or a Blueprint, not a value of type {type(app).__name__}")
    for kind in ANSWERED:
        app.register_error_handler(kind, _answer)


def _answer(error: Any) -> Any:
    found = answer_to(error)
    if found is None:
        raise error
    status, headers = found
    return {"detail": status.phrase}, status.value, headers
