"""A small HTTP service on loopback, which the examples call instead of the internet.

def answer(path, headers):
    return 200, {"path": path}

with Loopback(answer) as service:
    requests.get(service.url + "/parcels/A-1")
print(service.paths)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

Answer = Callable[[str, Mapping[str, str]], tuple[int, Any]]


class Loopback:
    """Serves JSON on a free port of 127.0.0.1 while its `with` block runs.

    Args:
        answer: returns the status and the content for a path and the request's headers.

    Attributes:
        url: where it listens: "http://127.0.0.1:port".
        paths: the path of every request so far.
    """

    def __init__(self, answer: Answer) -> None:
        self.paths: list[str] = []
        paths = self.paths

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                paths.append(self.path)
                status, content = answer(self.path, {name.title(): value for name, value in self.headers.items()})
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
