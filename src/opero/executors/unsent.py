"""Which failures say that the service has received nothing of an attempt."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from opero.errors import CallTimeoutError, OperoError, RejectedError

UNCONNECTED = frozenset(
    (
        "ClientConnectorError",  # aiohttp
        "ConnectError",  # httpx, httpcore
        "ConnectTimeout",  # httpx, httpcore, requests
        "ConnectTimeoutError",  # urllib3, botocore
        "ConnectionTimeoutError",  # aiohttp
        "EndpointConnectionError",  # botocore
        "NameResolutionError",  # urllib3
        "NewConnectionError",  # urllib3
        "PoolTimeout",  # httpx, httpcore
    )
)
"""Names of exception classes of clients that could not connect."""
DEEPEST = 10


def is_unsent(error: BaseException) -> bool:
    """Return whether no connection was made: a host refused it, has no address, or did not answer in time; or whether
    opero has rejected the attempt. Other errors of opero may stand for several attempts, so they say that of none."""
    if isinstance(error, OperoError):
        return error.is_unbegun if isinstance(error, CallTimeoutError) else isinstance(error, RejectedError)
    return any(
        isinstance(each, ConnectionRefusedError | socket.gaierror)
        or not UNCONNECTED.isdisjoint(base.__name__ for base in type(each).__mro__)
        for each in _causes(error)
    )


def _causes(error: object) -> Iterator[BaseException]:
    """Yield an exception and what caused it: clients say that as its cause, its reason or its argument."""
    for _ in range(DEEPEST):
        if not isinstance(error, BaseException):
            return
        yield error
        causes = (error.__cause__, getattr(error, "reason", None), error.args[0] if error.args else None)
        error = next((each for each in causes if isinstance(each, BaseException)), None)
