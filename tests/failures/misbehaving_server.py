"""A server on loopback that misbehaves in many ways, so that clients raise what they raise in production."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CERTIFICATE = Path(__file__).with_name("self_signed.pem")
"""A certificate that nobody trusts, with its key."""

AWS = "application/x-amz-json-1.0"

ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "busy": (503, {"Retry-After": "3"}, b""),
    "quota": (429, {}, b'{"error": {"message": "x", "type": "insufficient_quota", "code": "insufficient_quota"}}'),
    "slow-down": (429, {"retry-after-ms": "1500"}, b'{"error": {"code": "rate_limit_exceeded", "type": "tokens"}}'),
    "overloaded": (529, {}, b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}'),
    "credit": (
        400,
        {},
        b'{"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API"}}',
    ),
    "stream": (
        200,
        {"Content-Type": "text/event-stream"},
        b'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n',
    ),
    "aws-throttled": (400, {"Content-Type": AWS}, b'{"__type": "x#ProvisionedThroughputExceededException"}'),
    "aws-expired": (400, {"Content-Type": AWS}, b'{"__type": "x#ExpiredTokenException"}'),
    "aws-missing": (400, {"Content-Type": AWS}, b'{"__type": "x#ResourceNotFoundException"}'),
    "redirects": (302, {"Location": "/redirects"}, b""),
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path: a status, a name in `ANSWERS`, or a way to break the connection."""

    protocol_version = "HTTP/1.1"
    released: threading.Event

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = self.path.strip("/").partition("/")[0]
        if what == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif what == "hang":
            self.released.wait(30)
        elif what == "junk":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        elif what == "short":
            self.answer(200, {"Content-Length": "100"}, b"x")
        else:
            status, headers, body = ANSWERS.get(what) or (int(what), {}, b"{}")
            plain = {"Content-Length": str(len(body)), "Content-Type": "application/json", "Connection": "close"}
            self.answer(status, plain | headers, body)
        self.close_connection = True

    do_POST = do_GET  # noqa: N815  # the name is the base class's

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, *_: Any) -> None:
        pass  # clients hang up


@contextlib.contextmanager
def http_server(tls: bool = False) -> Iterator[str]:
    """Run the server; its URL."""
    released = threading.Event()
    server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"released": released}))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://localhost:{server.server_port}"
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def redis_server(answer: str) -> Iterator[int]:
    """Run a server that gives one answer to everything; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    while connection.recv(65536):
                        connection.sendall(f"{answer}\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def closed_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
