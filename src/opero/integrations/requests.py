"""requests under a policy: `session.mount("https://", Adapter(policy="api"))`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.exceptions import NewConnectionError

from opero import errors
from opero.errors import ConfigError, OperoError
from opero.executors.scope_keys import origin_of
from opero.integrations.http_clients import (
    IDEMPOTENT,
    NOT_IN_MEMORY,
    ONE_READ,
    STILL_READ,
    Repeats,
    for_caller,
    marked,
    own_errors,
    under_policy,
)

if TYPE_CHECKING:
    from typing import Unpack

    from opero.policies.options import Options
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["Adapter"]

_OWN = own_errors(__name__, requests.Timeout, requests.RequestException)
globals().update({each.__name__: each for each in _OWN.values()})  # where pickles look for them


class Adapter(BaseAdapter):
    """Sends requests by another adapter, under a policy.

    Each request that a session sends is a call of its own, also one that follows a redirect. It ends with the headers
    of the response: the body, which is read later, is outside of the policy.

    A request is repeated only if that is safe: if its method is idempotent, it has an idempotency key, or nothing of it
    was sent, as the connection could not be made; and only if its body can be sent again. It is hedged only if its
    method is idempotent or it has such a key, and its body is in memory. A response whose place
    another attempt takes is closed. The response of the last attempt is returned as it is, such as a 503. If all
    attempts raised exceptions, the last of them is raised, with a note about the others; what opero raises itself, such
    as `opero.CircuitOpenError`, is a `requests.RequestException` as well, and a timeout a `requests.Timeout`.

    With `scope: auto`, the default, each origin (scheme, host and port) has a circuit breaker, a rate limit and a
    bulkhead of its own, so that one host that is down concerns no other; `scope: profile` keeps one of each.

    Args:
        policy: the name of a profile, resolved at the first request, or a `Policy`. Without it, `retries` is 3 unless
            the options set it.
        registry: the registry of the profile. Default: the default registry, at the first request.
        adapter: sends the requests. Default: `HTTPAdapter()`. It must not have retries of its own (`max_retries`).
        idempotency_key: whether to add a header `Idempotency-Key`, the same for all attempts, to requests whose method
            is not among `retry_methods`, unless they have one; or another name for that header.
        retry_methods: the methods whose requests may be repeated. Default: the idempotent ones: DELETE, GET, HEAD,
            OPTIONS, PUT and TRACE.
        clock: the source of time and randomness. Default: the system's.
        **options: flat options and policies, as of `@opero`, which lie over the profile.

    Attributes:
        bound: the bound function that sends requests, with `.stats`, `.policy` and so on.
        adapter: the adapter by which it sends them.

    Raises:
        ConfigError: an argument is invalid, or the policy does not fit: it has a cache, for example. A profile of the
            default registry is checked at the first request.
    """

    _name: ClassVar[str] = f"{__name__}:Adapter"
    """The name in `functions:`."""

    def __init__(
        self,
        policy: str | Policy | None = None,
        *,
        registry: Registry | None = None,
        adapter: BaseAdapter | None = None,
        idempotency_key: bool | str = False,
        retry_methods: Collection[str] = IDEMPOTENT,
        clock: Clock | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        self._repeats = Repeats(retry_methods, idempotency_key)
        if adapter is not None and not isinstance(adapter, BaseAdapter):
            raise ConfigError(
                f"adapter expects an adapter of requests, such as HTTPAdapter(), not a value of type "
                f"{type(adapter).__name__}"
            )
        if isinstance(adapter, Adapter):
            raise ConfigError(
                "adapter is under a policy already, and the retries of two would multiply: use a single Adapter, with "
                "the adapter that sends the requests"
            )
        if has_own_retries(adapter):
            raise ConfigError(
                "adapter has retries of its own, which would multiply with those of the policy: create it without "
                "max_retries"
            )
        self.adapter = adapter or HTTPAdapter()
        self._again = partial(
            type(self),
            policy,
            registry=registry,
            adapter=self.adapter,
            idempotency_key=idempotency_key,
            retry_methods=retry_methods,
            clock=clock,
            **options,
        )
        handle = marked(self.adapter.send, "requests")

        def send(request: Any, **kwargs: Any) -> Any:
            position = request._body_position
            if type(position) is int and request.body.tell() != position:
                request.body.seek(position)
            return handle(request, **kwargs)

        name = self._name
        self.bound: Any = under_policy(
            send, name, self._why_once, _origin, policy, registry, clock, options, self._why_alone
        )

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request under the policy."""
        self._repeats.prepare(request.method or "", request.headers)
        try:
            response: requests.Response = self.bound(
                request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
            )
            return response
        except OperoError as error:
            raised = for_caller(error, _OWN, request=request, response=None)
        try:
            raise raised
        finally:
            del raised

    def close(self) -> None:
        """Close the adapter that sends the requests."""
        self.adapter.close()

    def __reduce__(self) -> Any:
        return self._again, ()

    def _why_alone(self, request: Any, **_: Any) -> str | None:
        reason = self._repeats.why_once(request.method or "", request.headers)
        return reason if reason is not None or isinstance(request.body, str | bytes | None) else NOT_IN_MEMORY

    def _why_once(self, error: Exception, request: Any, **_: Any) -> str | None:
        if _is_unsent(error):
            return None
        reason = self._repeats.why_once(request.method or "", request.headers)
        if reason is not None or request.body is None or isinstance(request.body, str | bytes):
            return reason
        if isinstance(error, errors.CallTimeoutError):
            return STILL_READ
        return None if _is_replayable(request) else ONE_READ


def _origin(request: Any, **_: Any) -> str:
    """Return scheme, host and port of a request."""
    return origin_of(request.url)


def has_own_retries(adapter: Any) -> bool:
    """Return whether an adapter repeats requests by itself."""
    own = getattr(adapter, "max_retries", None)
    return any(getattr(own, each, None) for each in ("total", "connect", "read", "status", "other"))


def _is_unsent(error: Exception) -> bool:
    """Return whether nothing of a request was sent, as the connection could not be made."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    inner = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    return isinstance(getattr(inner, "reason", None), NewConnectionError)


def _is_replayable(request: Any) -> bool:
    """Return whether the body of a request can be sent again: requests notes where a file began."""
    if hasattr(request.body, "read"):
        return type(request._body_position) is int and hasattr(request.body, "seek")
    return not isinstance(request.body, Iterator)
