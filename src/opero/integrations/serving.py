"""`OPERO_SERVE` and `OPERO_WATCH`: what is served and watched without code, when the default registry is first used."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from opero.errors import ConfigError, error_at, message_of
from opero.runtime.log import log
from opero.runtime.named_secrets import find_secret

if TYPE_CHECKING:
    from opero.registry.registry import Registry
    from opero.registry.watch import Watch

SERVE, WATCH = "OPERO_SERVE", "OPERO_WATCH"
ON, OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class Wanted(NamedTuple):
    """What the variables ask for.

    Attributes:
        serve: the host and port to serve the live page at; None for nowhere.
        watch: whether to watch the files, and hear SIGHUP.
    """

    serve: tuple[str, int] | None
    watch: bool


class Switched:
    """What has been switched on in this process. It is not thread-safe."""

    def __init__(self) -> None:
        self._registry: Registry | None = None
        self._watch: Watch | None = None
        self._server: object = None

    def follow(self, registry: Registry) -> None:
        """Switch on for the default registry, when it is used first, what the variables ask for.

        Raises:
            ConfigError: a variable is invalid.
        """
        if registry is self._registry:
            return
        wanted = read()
        self._registry = registry
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if wanted.watch:
            self._watch = _watching(registry)
        if wanted.serve is not None and self._server is None:
            self._server = _serving(*wanted.serve)


_switched = Switched()
follow = _switched.follow


def read() -> Wanted:
    """Return what the variables ask for, in the environment, the `.env` file or the directory of secrets.

    Raises:
        ConfigError: a variable is invalid.
    """
    serve, watch = ((_value(name) or "").strip() for name in (SERVE, WATCH))
    if watch.lower() not in ON + OFF:
        raise error_at(WATCH, f"{watch!r} is invalid: use true or false")
    return Wanted(None if serve.lower() in OFF else _address(serve), watch.lower() in ON)


def _value(name: str) -> str | None:
    try:
        return find_secret(name)
    except ValueError as error:
        raise error_at(name, message_of(error)) from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isdecimal() or int(port[:6]) > 65535 or "/" in host:
        raise error_at(SERVE, f"{text!r} is invalid: use an address and a port, such as 127.0.0.1:9300, or off")
    return host, int(port)


def _watching(registry: Registry) -> Watch | None:
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main:
        text = "%s: files are watched; SIGHUP is not heard, as the first call is not in the main thread"
        log("sighup_not_heard", text, WATCH)
    try:
        return registry.watch(sighup=in_main)
    except ConfigError as error:
        log("configuration_not_watched", "%s: nothing is watched: %s", WATCH, error, error=error)
        return None


def _serving(host: str, port: int) -> object:
    from opero.integrations.web import server

    try:
        running = server.serve(port, host)
    except server.PortInUseError:
        # One of several processes, as of a server that forks, gets the port; the others work without.
        log("page_not_served", "%s: %s:%d is in use, so this process is not served", SERVE, host, port)
        return server
    except ConfigError as error:
        log("page_not_served", "%s: %s", SERVE, error, error=error)
        return server
    log("page_served", "%s: serving %s", SERVE, running.url, url=running.url)
    found: object = running
    return found
