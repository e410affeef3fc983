"""Requests and responses, as plain values that ASGI and WSGI are translated to and from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from opero.dataclass import dataclass

LARGEST_BODY = 16_384

Headers = list[tuple[str, str]]
SECURITY: Headers = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
"""The headers of every response."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        method: in upper case.
        path: below the place where the app is mounted; begins with "/".
        prefix: the path of that place, without a slash at its end.
        query: the text after "?".
        headers: by name, in lower case.
        client: the address of the peer; "" if unknown.
        body: what was sent, as far as it is not longer than `LARGEST_BODY` + 1.
    """

    method: str
    path: str
    prefix: str = ""
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    client: str = ""
    body: bytes = b""

    def argument(self, name: str) -> str | None:
        """Return a value of the query; None if it is not there."""
        values = parse_qs(self.query, max_num_fields=20).get(name)
        return values[-1] if values else None


@dataclass(frozen=True, slots=True)
class Response:
    """A response with a body.

    Attributes:
        status: the HTTP status.
        body: the body.
        content_type: its type.
        extra: further headers.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    extra: Headers = field(default_factory=list)

    @property
    def reason(self) -> str:
        """The text beside the status."""
        return HTTPStatus(self.status).phrase

    def headers(self) -> Headers:
        """Return all headers."""
        of_body = [("Content-Type", self.content_type), ("Content-Length", str(len(self.body)))]
        return [*of_body, *SECURITY, *self.extra]


@dataclass(frozen=True, slots=True)
class Updates:
    """Server-sent events: a message now, and one each second.

    Attributes:
        next: returns the next message.
        end: must be called when no more messages are sent.
        goes_on: whether more than one message may be sent; the page asks again for the next otherwise.
    """

    next: Callable[[], bytes]
    end: Callable[[], None]
    goes_on: bool

    def headers(self) -> Headers:
        """Return all headers. The last one keeps nginx from collecting messages before it passes them on."""
        return [("Content-Type", "text/event-stream; charset=utf-8"), *SECURITY, ("X-Accel-Buffering", "no")]


@dataclass(frozen=True, slots=True)
class HealthAsked:
    """The health checks have to be run, in the event loop that serves the request if there is one.

    Attributes:
        is_probe: whether only the readiness is asked for.
    """

    is_probe: bool


def as_json(data: Any, status: int = 200, extra: Headers | None = None) -> Response:
    """Return a response of plain data."""
    body = json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
    return Response(status, body, extra=extra or [])


def refused(status: int, text: str, extra: Headers | None = None) -> Response:
    """Return a response that says what is wrong."""
    return as_json({"error": text}, status, extra)
