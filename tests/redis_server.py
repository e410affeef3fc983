"""A real redis-server on loopback for the tests, installed where it is missing."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest


class RedisServer:
    """A redis-server of our own that can be stopped, killed, frozen and brought back on the same port.

    Args:
        program: the path of redis-server.
        directory: its working directory.
        options: more of its arguments, in place of those of a server that keeps nothing.
    """

    def __init__(self, program: str, directory: str, *options: str) -> None:
        self.program = program
        self.directory = directory
        self.options = options or ("--save", "", "--appendonly", "no")
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def tls_port(self) -> int:
        return int(self.options[self.options.index("--tls-port") + 1])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = [*self.options, "--bind", "127.0.0.1", "--dir", self.directory]
        # The configuration file of a sentinel comes first.
        at = 0 if self.options[0].startswith("--") else 1
        options[at:at] = ["--port", str(self.port)]
        # The shell ends with its standard input, which is ours: so the server never outlives the tests.
        script = '"$0" "$@" & trap "kill -9 $!" EXIT; read -r _; true'
        self.process = subprocess.Popen(
            ["sh", "-c", script, self.program, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 60
        while not self.answers():
            if time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"redis-server did not answer on port {self.port}")
            time.sleep(0.01)

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.process = None

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)


PORTS = range(11_000, 21_000)
"""Below those that systems give to outgoing connections, one of which might take the port before the server does. The
bus of a cluster has ports that are 10,000 higher."""
_reserved: list[int] = []


def free_port() -> int:
    """A port of no other server of these tests, in this process or another, until this process ends."""
    folder = Path(tempfile.gettempdir()) / f"opero-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(PORTS, len(PORTS)):
        reservation = os.open(folder / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(reservation, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as free:
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                free.bind(("127.0.0.1", port))
        except OSError:
            os.close(reservation)
            continue
        _reserved.append(reservation)
        return port
    raise RuntimeError("no port is free")


def find_program() -> str:
    """Where redis-server is; installed first, where it is missing. Suites that run side by side take turns.

    Raises:
        RuntimeError: it cannot be had.
    """
    with (Path(tempfile.gettempdir()) / "opero-redis-install.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        found = shutil.which("redis-server")
        if found is not None:
            return found
        become = [] if os.geteuid() == 0 else ["sudo", "-n"]
        if shutil.which("apt-get") is None or (become and shutil.which("sudo") is None):
            raise RuntimeError("redis-server is not installed, and there is no apt-get to install it with")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "redis-server"]):
            done = subprocess.run(
                [*become, "apt-get", *command], env=environment, capture_output=True, timeout=300, check=False
            )
        found = shutil.which("redis-server")
        if found is None:
            raise RuntimeError(f"apt-get install redis-server failed: {done.stderr.decode()[-300:]}")
        return found


@pytest.fixture(scope="session")
def redis_program() -> str:
    """Where redis-server is."""
    try:
        return find_program()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"redis-server could not be had: {error}")
        pytest.skip(f"redis-server could not be had: {error}")


@pytest.fixture(scope="session")
def redis_server(redis_program: str) -> Iterator[RedisServer]:
    """A server of our own, for tests that kill it."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(redis_program, directory)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database: of the server of `OPERO_TEST_REDIS_URL`, or of one of our own."""
    import redis

    url = os.environ.get("OPERO_TEST_REDIS_URL") or request.getfixturevalue("redis_server").url
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if "OPERO_TEST_REDIS_URL" in os.environ and worker is not None:  # one server for all workers: a database for each
        url = urlsplit(url)._replace(path=worker.removeprefix("gw")).geturl()
    client = redis.Redis.from_url(url)
    client.flushdb()
    client.close()
    return url
