"""`opero.serve`: health, metrics and the live page in a program that has no server of its own."""

from __future__ import annotations

import atexit
import errno
import os
import socket
import sys
import threading
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self

from opero.errors import ConfigError, message_of
from opero.integrations.web.addresses import publish
from opero.integrations.web.messages import LARGEST_BODY, Request, Response, Updates, refused
from opero.integrations.web.site import Site
from opero.integrations.wsgi import Stream, answered
from opero.runtime.forking import renew_in_child
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.health.monitor import HealthMonitor
    from opero.registry.registry import Registry

MOST_CONNECTIONS = 32
PATIENCE = 10.0
"""Seconds within which a client has to send its request, and to receive what is sent."""
BACKLOG = 64
FLAGS = socket.AI_PASSIVE


class PortInUseError(ConfigError):
    """Another program, or another process of this one, listens on the port."""


class _Server(ThreadingMixIn, TCPServer):
    """Accepts connections, each in a thread."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG
    allow_reuse_address = os.name != "nt"  # there, it would take the port from another program

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], site: Site) -> None:
        self.address_family = family
        self.site = site
        self.stopping = threading.Event()
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self.connections) >= MOST_CONNECTIONS:  # the client may come back
            self.shutdown_request(request)
            return
        self.connections.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        log("request_broken", "a request to opero's server failed", error=error, traceback=True)


class _Handler(BaseHTTPRequestHandler):
    """Serves one request for each connection."""

    server: _Server
    timeout = PATIENCE
    server_version = "opero"
    sys_version = ""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has gone
            self.close_connection = True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = b""
        length = headers.get("content-length", "0")
        if self.command == "POST" and length.isdecimal():
            body = self.rfile.read(min(int(length[:9]), LARGEST_BODY + 1))
        request = Request(self.command, path, "", query, headers, str(self.client_address[0]), body)
        try:
            answer = answered(self.server.site, request, may_stream=True)
        except Exception as error:  # noqa: BLE001  # checks and configurations are the user's
            log("request_failed", "opero's server: %s failed", path, path=path, error=error, traceback=True)
            answer = refused(500, "the request failed; the log of the program has the reason")
        if isinstance(answer, Response):
            self._begin(answer.status, answer)
            self.wfile.write(b"" if self.command == "HEAD" else answer.body)
            return
        with closing(Stream(answer, self.server.stopping)) as stream:
            self._begin(200, answer)
            for message in () if self.command == "HEAD" else stream:
                self.wfile.write(message)

    def _begin(self, status: int, answer: Response | Updates) -> None:
        self.send_response(status)
        for name, value in answer.headers():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # as in the base class
        pass


class LiveServer:
    """A running server. `close()` or the end of a `with` block ends it; so does the end of the program.

    A forked child does not serve: it has neither the thread nor the socket.

    Attributes:
        url: the address of the page, "http://127.0.0.1:9300/opero".
        port: the port.
    """

    def __init__(self, host: str, port: int, site: Site) -> None:
        self._server = _listening(host, port, site)
        self.port: int = self._server.server_address[1]
        shown = "127.0.0.1" if host in ("", "0.0.0.0") else "::1" if host == "::" else host
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/opero"
        self._site = site
        self._is_closed = False
        self._file = publish(self.url)
        site.events.start()
        renew_in_child(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="opero-serve", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Stop serving and free the port. Closing it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._server.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._site.events.stop()
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink()
        atexit.unregister(self.close)

    def after_fork(self) -> None:
        """Close the sockets, which the parent goes on using: they would keep the port and the clients."""
        if self._is_closed:
            return
        self._is_closed = True
        self._server.socket.close()
        for each in list(self._server.connections):
            each.close()
        self._site.events.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LiveServer({self.url!r}{', closed' if self._is_closed else ''})"


def _listening(host: str, port: int, site: Site) -> _Server:
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise ConfigError(f"serve(port={port!r}): use a number from 0 to 65535; 0 takes a free port")
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=FLAGS)[0]
    except (OSError, UnicodeError, TypeError) as error:
        raise ConfigError(
            f"serve(host={host!r}): there is no such address on this machine: {message_of(error)}"
        ) from error
    try:
        return _Server(family, address[:2], site)  # type: ignore[arg-type]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} of {host} is in use: choose another by serve(port=…) or OPERO_SERVE={host}:PORT, or use "
                "port 0 for a free one"
            ) from error
        raise ConfigError(f"serve(host={host!r}, port={port}): {error.strerror}") from error


def serve(
    port: int = 9300,
    host: str = "127.0.0.1",
    *,
    registry: Registry | None = None,
    monitor: HealthMonitor | None = None,
) -> LiveServer:
    """Serve health, metrics and the live page in a thread of its own, for a program that has no server.

        server = opero.serve(port=9300)
        print(server.url)      # http://127.0.0.1:9300/opero

    Whoever can connect sees names of functions, error texts and options (secrets are masked), so the default is this
    machine alone. Requests must name the host as one of this machine, or as `OPERO_HOSTS` lists it.

    Args:
        port: where to listen; 0 for a free port. Default: 9300.
        host: the address to listen on; "0.0.0.0" for all. Default: 127.0.0.1.
        registry: the registry to show. Default: the default registry.
        monitor: the health monitor whose checks are run. Default: one that knows the registry alone.

    Returns:
        The running server; `server.close()` or a `with` block ends it.

    Raises:
        ConfigError: the port is in use or must not be used, or there is no such address.
    """
    return LiveServer(host, port, Site(registry, monitor, bound=host, keeps_events=True))
