"""Who may ask: the checks of Host and Origin, and the token of actions."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from hashlib import sha256
from urllib.parse import urlsplit

from opero.errors import ConfigError, message_of
from opero.integrations.web.messages import Request, Response, refused
from opero.runtime.named_secrets import find_secret, resolved

TOKEN = "OPERO_TOKEN"
HOSTS = "OPERO_HOSTS"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def listed_hosts() -> frozenset[str]:
    """Return the names in `OPERO_HOSTS`, which are separated by commas."""
    try:
        text = find_secret(HOSTS) or ""
    except (ConfigError, ValueError):  # a file that cannot be read lists nothing
        text = ""
    return frozenset(name for each in text.split(",") if (name := host_of(each.strip())))


def host_of(header: str) -> str:
    """Return the name in a Host header, without the port, in lower case; "" if it is malformed."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class Gate:
    """Decides by Host and Origin whether a request comes from where it seems to come from.

    A page of another site can have its name resolve to 127.0.0.1 and so send requests to a server there (DNS
    rebinding), but with its own name as Host. And it can send requests with the right Host, but with its own Origin.

    Args:
        bound: the address that opero's own server listens on; None in an app that is mounted, whose server knows its
            names: then any Host is accepted unless `OPERO_HOSTS` lists some.
    """

    def __init__(self, bound: str | None) -> None:
        self._bound = bound

    def refusal(self, request: Request) -> Response | None:
        """Return the response to a request that is not accepted; None for one that is."""
        header, listed = request.headers.get("host", ""), listed_hosts()
        if not self._is_known(host_of(header), listed):
            return refused(
                421, f"unknown host {header[:100]!r}: add its name to {HOSTS} if it is one of this server's names"
            )
        origin = request.headers.get("origin")
        if origin is None:
            return None
        try:
            site = urlsplit(origin)
            is_own = site.netloc.lower() == header.lower() or host_of(site.netloc) in listed
        except ValueError:
            is_own = False
        if is_own:
            return None
        return refused(
            403,
            f"requests from pages of {origin[:100]!r} are refused; if that is this server behind a proxy, add its "
            f"name to {HOSTS}",
        )

    def _is_known(self, host: str, listed: frozenset[str]) -> bool:
        if host in listed:
            return True
        if self._bound is None:
            return not listed or host in LOOPBACK or _is_address(host)
        if host in (*LOOPBACK, self._bound.lower()):
            return True
        if self._bound in ("", "0.0.0.0", "::"):
            return _is_address(host) or host == socket.gethostname().lower()
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def token_refusal(request: Request) -> Response | None:
    """Return the response to a request without the right token; None if it has it."""
    try:
        token = resolved(find_secret(TOKEN) or "", find_secret)
    except (ConfigError, ValueError) as error:
        return refused(403, f"actions are off: {TOKEN}: {message_of(error)}")
    if not token:
        return refused(
            403,
            f"actions are off, as there is no token: set {TOKEN}, in the environment or the .env file, as a file of "
            f"the directory of secrets, or as a reference such as {TOKEN}=secret:NAME",
        )
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Digests, as comparing texts of different lengths would tell their length.
    is_right = hmac.compare_digest(
        sha256(given.strip().encode("latin-1", "replace")).digest(), sha256(token.encode()).digest()
    )
    if is_right and scheme.lower() == "bearer":
        return None
    return refused(
        401,
        f"the token is missing or wrong: send Authorization: Bearer and the value of {TOKEN}",
        [("WWW-Authenticate", 'Bearer realm="opero"')],
    )
