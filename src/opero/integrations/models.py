"""Clients of model APIs under a policy: `client(openai.OpenAI, policy="llm")`, `client(anthropic.AsyncAnthropic, ...)`.

It imports none of them, and serves every client that is generated in the same way (by Stainless) and sends its requests
by httpx or httpx2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from opero.errors import ConfigError
from opero.integrations.http_clients import IDEMPOTENT

if TYPE_CHECKING:
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["METHODS", "client"]

C = TypeVar("C")

METHODS = IDEMPOTENT | {"POST"}
"""The methods whose requests are repeated. POST is, as by the retries of the clients themselves: what a model answers
changes nothing, and a second answer costs no more than its tokens."""

OURS = {
    "max_retries": "the retries are those of the policy, and others would multiply with them: set retry there",
    "http_client": "requests are sent by a transport under the policy: pass transport=, which sends them in turn",
}
"""Arguments of clients that do not go together with a policy, with the cure."""


def client(
    kind: type[C],
    policy: str | Policy | None = None,
    *,
    registry: Registry | None = None,
    transport: Any = None,
    idempotency_key: bool | str = False,
    retry_methods: Collection[str] = METHODS,
    clock: Clock | None = None,
    **arguments: Any,
) -> C:
    """Make a client of a model API whose requests run under a policy. Its own retries are off.

    A request ends with the headers of the response, also one that is streamed: the stream is passed on as it comes, and
    is not repeated once it has begun. All else is as `opero.integrations.httpx.Transport` describes it. What opero
    raises itself, such as `opero.CircuitOpenError`, is the cause of an `APIConnectionError`, or `APITimeoutError`.

    Args:
        kind: the class of the client, such as `openai.OpenAI`, `openai.AsyncAzureOpenAI` or `anthropic.Anthropic`.
        policy: the name of a profile, resolved at the first request, or a `Policy`. Default: three retries.
        registry: the registry of the profile. Default: the default registry, at the first request.
        transport: sends the requests. Default: as the client sends them, with its limits and proxies.
        idempotency_key, retry_methods: as for `opero.integrations.httpx.Transport`. Default: POST is repeated as well.
        clock: the source of time and randomness. Default: the system's.
        **arguments: those of the client, such as `api_key`, `base_url` and `timeout`.

    Raises:
        ConfigError: `kind` is no such class, an argument is invalid, or the policy does not fit.
    """
    names = {each.__name__ for each in kind.__mro__} if isinstance(kind, type) else set()
    is_async = "AsyncAPIClient" in names
    package: Any = sys.modules.get(getattr(kind, "__module__", "").partition(".")[0])
    default = getattr(package, "DefaultAsyncHttpxClient" if is_async else "DefaultHttpxClient", None)
    if default is None or not (is_async or "SyncAPIClient" in names):
        raise ConfigError(
            "client() expects the class of a client, such as openai.OpenAI or anthropic.AsyncAnthropic, not "
            f"{getattr(kind, '__name__', None) or type(kind).__name__}"
        )
    for name, cure in OURS.items():
        if name in arguments:
            raise ConfigError(f"{kind.__name__}: {name} does not go together with a policy: {cure}")

    def under(inner: Any) -> Any:
        return transport_for(default, is_async=is_async)(
            policy,
            registry=registry,
            transport=inner,
            idempotency_key=idempotency_key,
            retry_methods=retry_methods,
            clock=clock,
        )

    if transport is not None:
        http_client = default(transport=under(transport))
    else:  # as the client would make it, with the proxies of the environment
        http_client = default()
        change_transports(http_client, under)
    made: C = kind(**{**arguments, "max_retries": 0, "http_client": http_client})
    return made


def change_transports(http_client: Any, under: Callable[[Any], Any]) -> None:
    """Put the transports of a client of httpx or httpx2 under a policy."""
    http_client._transport = under(http_client._transport)
    http_client._mounts = {
        pattern: None if each is None else under(each) for pattern, each in http_client._mounts.items()
    }


def transport_for(http_client: type[Any], *, is_async: bool) -> type[Any]:
    """Return our transport for a client of httpx or httpx2."""
    if any(each.__module__.partition(".")[0] == "httpx2" for each in http_client.__mro__):
        from opero.integrations import httpx2

        return httpx2.AsyncTransport if is_async else httpx2.Transport
    from opero.integrations import httpx

    return httpx.AsyncTransport if is_async else httpx.Transport
