"""aiohttp under a policy: `aiohttp.ClientSession(middlewares=[Middleware(policy="api")])`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp

from opero.errors import ConfigError, OperoError
from opero.executors.scope_keys import origin
from opero.integrations.http_clients import IDEMPOTENT, ONE_READ, Repeats, for_caller, own_errors, under_policy

if TYPE_CHECKING:
    from typing import Unpack

    from opero.policies.options import Options
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["Middleware"]

_OWN = own_errors(__name__, aiohttp.ServerTimeoutError, aiohttp.ClientError)
globals().update({each.__name__: each for each in _OWN.values()})  # where pickles look for them

_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_SENT_AGAIN = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
"""Exceptions after which aiohttp sends an idempotent request once more by itself, except those of `_UNSENT`."""


class Middleware:
    """Sends the requests of a session under a policy. It needs aiohttp 3.12 or later.

    Each request that a session sends is a call of its own, also one that follows a redirect. It ends with the headers
    of the response: the body, which is read later, is outside of the policy.

    A request is repeated only if that is safe: if its method is idempotent, it has an idempotency key, or nothing of it
    was sent, as the connection could not be made; and only if its body can be sent again. A response whose place
    another attempt takes is closed. The response of the last attempt is returned as it is, such as a 503. If all
    attempts raised exceptions, the last of them is raised, with a note about the others; a lost connection is raised as
    an `aiohttp.ClientConnectionError`, as aiohttp would otherwise send the request once more by itself. What opero
    raises, such as `opero.CircuitOpenError`, is an `aiohttp.ClientError` as well.

    With `scope: auto`, the default, each origin (scheme, host and port) has a circuit breaker, a rate limit and a
    bulkhead of its own, so that one host that is down concerns no other; `scope: profile` keeps one of each.

    The total timeout of the session, 5 minutes by default, limits all attempts together.

    Args:
        policy: the name of a profile, resolved at the first request, or a `Policy`. Without it, `retries` is 3 unless
            the options set it.
        registry: the registry of the profile. Default: the default registry, at the first request.
        idempotency_key: whether to add a header `Idempotency-Key`, the same for all attempts, to requests whose method
            is not among `retry_methods`, unless they have one; or another name for that header.
        retry_methods: the methods whose requests may be repeated. Default: the idempotent ones: DELETE, GET, HEAD,
            OPTIONS, PUT and TRACE.
        clock: the source of time and randomness. Default: the system's.
        **options: flat options and policies, as of `@opero`, which lie over the profile.

    Attributes:
        bound: the bound function that sends requests, with `.stats`, `.policy` and so on.

    Raises:
        ConfigError: an argument is invalid, or the policy does not fit: it has a cache, for example. A profile of the
            default registry is checked at the first request.
    """

    _name: ClassVar[str] = f"{__name__}:Middleware"
    """The name in `functions:`."""

    def __init__(
        self,
        policy: str | Policy | None = None,
        *,
        registry: Registry | None = None,
        idempotency_key: bool | str = False,
        retry_methods: Collection[str] = IDEMPOTENT,
        clock: Clock | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not hasattr(aiohttp, "ClientMiddlewareType"):
            raise ConfigError(f"aiohttp {aiohttp.__version__} has no client middlewares: install aiohttp 3.12 or later")
        self._repeats = Repeats(retry_methods, idempotency_key)

        async def send(request: Any, handler: Any) -> Any:
            if request.response is not None:  # of an attempt before this one, which may still be sending the body
                await request.close()
            return await handler(request)

        name = self._name
        self.bound: Any = under_policy(send, name, self._why_once, _origin, policy, registry, clock, options)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request under the policy."""
        self._repeats.prepare(request.method, request.headers)
        try:
            response: aiohttp.ClientResponse = await self.bound(request, handler)
            return response
        except OperoError as error:
            raised = for_caller(error, _OWN)
        except _SENT_AGAIN as error:
            raised = error
        try:
            raise self._final(raised)
        finally:
            del raised

    def _final(self, error: Exception) -> Exception:
        """Return what is raised for an exception, after which aiohttp must not send the request again."""
        if not isinstance(error, _SENT_AGAIN) or isinstance(error, (*_UNSENT, OperoError)):
            return error
        if self.bound.policy.in_force("retry") is None:
            return error
        lost = aiohttp.ClientConnectionError(*error.args)
        lost.__cause__ = error
        vars(lost).update(vars(error))  # notes, and that the call has given up
        return lost

    def _why_once(self, error: Exception, request: Any, handler: Any) -> str | None:
        if isinstance(error, _UNSENT):
            return None
        reason = self._repeats.why_once(request.method, request.headers)
        if reason is not None:
            return reason
        return ONE_READ if getattr(request.body, "consumed", False) else None


def _origin(request: Any, handler: Any) -> str:
    """Return scheme, host and port of a request."""
    url = request.url
    return origin(url.scheme, url.host or "", url.port)
