"""httpx2 under a policy: `httpx2.Client(transport=Transport(policy="api"))`, and `AsyncTransport` for async clients."""

from __future__ import annotations

from typing import Any, ClassVar

import httpx2

from opero.integrations.http_clients import own_errors
from opero.integrations.httpx_transports import AsyncPolicyTransport, PolicyTransport, SyncPolicyTransport

__all__ = ["AsyncTransport", "Transport"]

_OWN = own_errors(__name__, httpx2.TimeoutException, httpx2.TransportError)
globals().update({each.__name__: each for each in _OWN.values()})  # where pickles look for them


class Transport(SyncPolicyTransport, httpx2.BaseTransport):
    __doc__ = PolicyTransport.__doc__
    _client: ClassVar[Any] = httpx2
    _own = _OWN


class AsyncTransport(AsyncPolicyTransport, httpx2.AsyncBaseTransport):
    __doc__ = PolicyTransport.__doc__
    _client: ClassVar[Any] = httpx2
    _own = _OWN
