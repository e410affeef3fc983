"""httpx under a policy: `httpx.Client(transport=Transport(policy="api"))`, and `AsyncTransport` for async clients."""

from __future__ import annotations

from typing import Any, ClassVar

import httpx

from opero.integrations.http_clients import own_errors
from opero.integrations.httpx_transports import AsyncPolicyTransport, PolicyTransport, SyncPolicyTransport

__all__ = ["AsyncTransport", "Transport"]

_OWN = own_errors(__name__, httpx.TimeoutException, httpx.TransportError)
globals().update({each.__name__: each for each in _OWN.values()})  # where pickles look for them


class Transport(SyncPolicyTransport, httpx.BaseTransport):
    __doc__ = PolicyTransport.__doc__
    _client: ClassVar[Any] = httpx
    _own = _OWN


class AsyncTransport(AsyncPolicyTransport, httpx.AsyncBaseTransport):
    __doc__ = PolicyTransport.__doc__
    _client: ClassVar[Any] = httpx
    _own = _OWN
