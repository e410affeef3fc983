"""A service on loopback that answers as a test says, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Answer = int | str | Callable[["Handler"], None]


class Seen(NamedTuple):
    """A request that the service has received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Service:
    """What the service answers, and what it has been asked.

    Attributes:
        url: its address.
        answers: what the next requests get: a status, "drop" (the connection is closed), "hang" (until the test ends),
            or a function of the handler. All later ones get 200.
        seen: the requests so far.
        sockets: those of all connections so far.
        released: set when the test ends.
    """

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[Answer] = []
        self.seen: list[Seen] = []
        self.sockets: list[socket.socket] = []
        self.released = threading.Event()

    def next(self) -> Answer:
        return self.answers.pop(0) if self.answers else 200

    @property
    def bodies(self) -> list[bytes]:
        return [each.body for each in self.seen]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def setup(self) -> None:
        super().setup()
        self.service.sockets.append(self.connection)

    def log_message(self, *_: Any) -> None:
        pass

    def serve(self) -> None:
        body = self.read_body()
        self.service.seen.append(Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        answer = self.service.next()
        if callable(answer):
            answer(self)
        elif answer == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif answer == "hang":
            self.service.released.wait(60)
            self.close_connection = True
        else:
            self.answer(int(answer), b"" if answer == 204 else str(answer).encode())

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


for _method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"):
    setattr(Handler, f"do_{_method}", Handler.serve)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, *_: Any) -> None:
        pass  # clients hang up


@contextlib.contextmanager
def running() -> Iterator[Service]:
    """Run a service."""
    service = Service()
    server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"service": service}))
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        service.released.set()
        server.shutdown()
        thread.join()
        for each in service.sockets:  # clients may keep them open
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        server.server_close()
