"""Where a redis is, and how to reach it: reads its URL and the arguments of its client, without connecting."""

from __future__ import annotations

import inspect
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from opero.errors import message_of, nearest

KINDS = {"redis": "", "rediss": "", "unix": "", "redis+sentinel": "sentinel", "rediss+sentinel": "sentinel"}
KINDS |= {"redis+cluster": "cluster", "rediss+cluster": "cluster"}
"""Scheme of a URL → what is there: a server, sentinels, or a cluster."""
FORMS = (
    "use redis://host:port/database, redis+sentinel://host:port,…/service/database or redis+cluster://host:port,…, "
    "each with user and password before the first host if there are any, and with rediss for TLS; or unix://path"
)
ESCAPES = "in a password, write @ as %40, / as %2F, ? as %3F and # as %23"
NO_HOST, NO_SERVICE, NO_NUMBER = "a host is missing", "the name of the service is missing", "the database is no number"
REASONS = (NO_HOST, NO_SERVICE, NO_NUMBER)
SENTINEL_PORT = 26379
OF_SENTINELS = ("sentinel_username", "sentinel_password")
"""Options for the sentinels themselves."""
OF_POOL = ("max_connections",)
FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
FLAGS = ("retry_on_timeout", "socket_keepalive", "ssl_check_hostname")
TEXTS = ("client_name", "host", "password", "ssl_ca_data", "ssl_password", "username", *FILES, *OF_SENTINELS)
LEAST = {
    "db": 0,
    "health_check_interval": 0,
    "max_connections": 1,
    "port": 1,
    "protocol": 2,
    "socket_connect_timeout": 0.001,
    "socket_read_size": 1,
    "socket_timeout": 0.001,
}
"""Options that are numbers → the least that is valid."""


class Address(NamedTuple):
    """A redis, and the arguments of its client.

    Attributes:
        kind: "" for one server, "sentinel" or "cluster".
        nodes: hosts and ports: of the sentinels, or of some nodes of the cluster.
        service: the name by which the sentinels know the server.
        connection_class: the class of redis-py for its connections.
        options: the arguments for redis-py.
        of_sentinels: the arguments for connections to the sentinels.
    """

    kind: str
    nodes: tuple[tuple[str, int], ...]
    service: str
    connection_class: Any
    options: dict[str, Any]
    of_sentinels: dict[str, Any]


def read_address(url: str, timeout: float, arguments: Mapping[str, Any]) -> Address:
    """Return what a URL and further arguments say, all of which is checked.

    Args:
        url: the URL; options in its query take precedence.
        timeout: seconds to connect and to wait for each reply, unless the arguments say otherwise.
        arguments: more arguments for redis-py.

    Raises:
        ValueError: something is invalid; the message shows no value that may be a password.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in KINDS:
        raise ValueError(f"invalid redis URL: {FORMS}")
    kind = KINDS[scheme]
    try:
        nodes, service, plain = _split(kind, scheme.partition("+")[0], rest)
        found, connection_class = _parsed(plain)
    except ValueError as error:
        # Other errors quote the URL, which may have a password.
        text = message_of(error)
        is_harmless = "@" not in url or text in REASONS or text.startswith("Invalid value for '")
        is_split = "@" in "".join(re.split("[/?#]", rest, maxsplit=1)[1:])  # within the password
        told = ESCAPES if is_split else text if is_harmless else ""
        reason = f" ({told})" if told else ""
        raise ValueError(f"invalid redis URL{reason}: {FORMS}") from None
    query = set(found) - {"host", "port", "username", "password", "path"}
    for place, options in (("arguments", arguments), ("url", {name: found[name] for name in query})):
        _check(place, options, kind, connection_class)
    options = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        **arguments,
        **found,
    }
    options.pop("decode_responses", None)
    if kind == "cluster" and options.pop("db", 0) != 0:
        raise ValueError("a redis cluster has no database but 0: remove the number from url or arguments")
    own = {name.removeprefix("sentinel_"): options.pop(name) for name in OF_SENTINELS if name in options}
    _check_files(options)
    connection = {name: value for name, value in options.items() if name in _names_of(connection_class)}
    try:
        connection_class(**connection)
    except Exception as error:  # noqa: BLE001  # redis-py's own errors, and what wrong types cause
        raise ValueError(f"arguments: redis-py does not accept them: {message_of(error)}") from None
    shared = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
    return Address(kind, nodes, service, connection_class, options, shared | own)


def place_of(url: str) -> str:
    """Return where a URL points to, for messages: without a password, even in one that is malformed."""
    before, _, query = url.partition("://")[2].partition("?")
    if "@" in query and "@" not in before:  # the question mark may belong to a password
        return "an unreadable URL"
    return before.rpartition("@")[2] or "localhost:6379"


def _split(kind: str, scheme: str, rest: str) -> tuple[tuple[tuple[str, int], ...], str, str]:
    """Return the nodes and the service of an address, and a URL with all the rest of it that redis-py reads."""
    if not kind:
        return (), "", f"{scheme}://{rest}"
    before, mark, query = rest.partition("?")
    place, _, path = before.partition("/")
    user, at, hosts = place.rpartition("@")
    default = SENTINEL_PORT if kind == "sentinel" else 6379
    nodes = []
    for each in hosts.split(","):
        found = urlsplit(f"//{each.strip()}")
        if not found.hostname:
            raise ValueError(NO_HOST)
        nodes.append((unquote(found.hostname), found.port or default))
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        service = unquote(service)
        if not service:
            raise ValueError(NO_SERVICE)
    if path and not path.isdecimal():
        raise ValueError(NO_NUMBER)
    return tuple(nodes), service, f"{scheme}://{user}{at}host/{path}{mark}{query}"


def _parsed(url: str) -> tuple[dict[str, Any], Any]:
    import redis.connection

    module: Any = redis.connection
    parsed = urlsplit(url)
    if not parsed.scheme.startswith("unix") and parsed.path.strip("/") and not parsed.path.strip("/").isdecimal():
        raise ValueError(NO_NUMBER)
    found = dict(module.parse_url(url))
    connection_class = found.pop("connection_class", module.Connection)
    for name in FLAGS:
        if isinstance(found.get(name), str):
            found[name] = _flag(found[name])
    for name in LEAST:
        if isinstance(found.get(name), str):
            found[name] = float(found[name])
    return found, connection_class


def _flag(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on")


def _names_of(connection_class: Any) -> dict[str, None]:
    """Return the names of the parameters of a class and its bases, in their order."""
    names: dict[str, None] = {}
    for each in connection_class.__mro__[:-1]:
        if "__init__" in vars(each):
            parameters = inspect.signature(each.__init__).parameters.values()
            names |= dict.fromkeys(it.name for it in parameters if it.kind not in (it.VAR_KEYWORD, it.VAR_POSITIONAL))
    names.pop("self", None)
    return names


def _check(place: str, options: Mapping[str, Any], kind: str, connection_class: Any) -> None:
    known = {**_names_of(connection_class), **dict.fromkeys(OF_POOL)}
    if kind == "sentinel":
        known |= dict.fromkeys(OF_SENTINELS)
    elif kind == "cluster":
        from redis.cluster import RedisCluster

        known |= dict.fromkeys(set(inspect.signature(RedisCluster.__init__).parameters) - {"self", "kwargs", "url"})
    for name, value in options.items():
        if name not in known:
            if name.startswith("ssl"):
                raise ValueError(f"{place}: {name!r} needs TLS: use a URL that begins with rediss")
            raise ValueError(f"{place}: redis-py has no option {name!r}{nearest(name, list(known))}")
        wrong = _wrong(name, value)
        if wrong:
            raise ValueError(f"{place}: {name} {wrong}")


def _wrong(name: str, value: Any) -> str:
    """Return what is wrong about an option's value, without the value; "" if nothing is."""
    if name == "decode_responses":
        is_set = _flag(value) if isinstance(value, str) else bool(value)
        return "must be false, as entries are bytes: remove it" if is_set else ""
    if value is None:
        return ""
    if name in LEAST:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_number and value >= LEAST[name] else f"must be a number of at least {LEAST[name]}"
    if name in FLAGS:
        return "" if isinstance(value, bool) else "must be true or false"
    if name in TEXTS:
        return "" if isinstance(value, str) else f"must be text, not {type(value).__name__}; quote it"
    return ""


def _check_files(options: Mapping[str, Any]) -> None:
    """Check that the files of certificates and keys are there, and what they should be."""
    where: dict[str, Any] = {name: options.get(name) for name in (*FILES, "ssl_ca_data")}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if where["ssl_ca_certs"] or where["ssl_ca_path"]:
        names = "ssl_ca_certs" if where["ssl_ca_certs"] else "ssl_ca_path"
        _load(
            names,
            where[names],
            lambda: context.load_verify_locations(where["ssl_ca_certs"], where["ssl_ca_path"]),
        )
    if where["ssl_ca_data"]:
        _load("ssl_ca_data", "", lambda: context.load_verify_locations(cadata=where["ssl_ca_data"]))
    key = where["ssl_keyfile"]
    if where["ssl_certfile"]:
        _load("ssl_certfile", where["ssl_certfile"], lambda: _open(where["ssl_certfile"]))
        _load("ssl_keyfile", key or where["ssl_certfile"], lambda: _open(key or where["ssl_certfile"]))
        # Without a password, an encrypted key would ask the terminal for one.
        password = options.get("ssl_password") or ""
        _load(
            "ssl_certfile", where["ssl_certfile"], lambda: context.load_cert_chain(where["ssl_certfile"], key, password)
        )
    elif key:
        raise ValueError("arguments: ssl_keyfile needs an ssl_certfile")


def _load(name: str, path: Any, load: Callable[[], object]) -> None:
    shown = f"arguments: {name}{path and f' {str(path)!r}'}"
    try:
        load()
    except ssl.SSLError as error:
        raise ValueError(f"{shown} does not have what it should: {error.reason or message_of(error)}") from None
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{shown} does not have what it should: {message_of(error)}") from None


def _open(path: str) -> None:
    with open(path, "rb"):
        pass
