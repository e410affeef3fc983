"""Puts a profile under every client of a library that a program makes: what `imports: {"httpx": api}` does.

A class of the library is changed where its clients send requests, once in a process. So it makes no difference how a
program makes its clients, and what stands above that, such as a cache or authentication, is as it was. All clients of
a library share one bound function for sync requests and one for async ones, both named "httpx:clients" in `functions:`,
counts and logs. A request that an integration of opero's sends is under a policy already, and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from opero.config.document import CLIENTS
from opero.integrations.http_clients import IS_UNDER, LIBRARIES_UNDER

if TYPE_CHECKING:
    from types import ModuleType

    from opero.registry.registry import Registry

_SENDER: ContextVar[partial[Any]] = ContextVar("opero_request_sender")
"""How the client of the current request sends it: a function, with the transport, or adapter, of that client."""
OWN_RETRIES = "the client makes retries of its own, which would multiply with those of the policy"


def put_under(module: ModuleType, profile: str, registry: Registry) -> None:
    """Put a profile under all clients of a library that has just been imported.

    Args:
        module: the library, one of `CLIENT_LIBRARIES`.
        profile: the name of the profile.
        registry: the registry that has it.

    Raises:
        ConfigError: the profile does not fit clients: it has a cache, for example.
        PolicyNotFoundError: there is no such profile.
    """
    library = module.__name__
    LIBRARIES_UNDER.add(library)  # before anything is bound
    how = {"httpx": _put_under_httpx, "httpx2": _put_under_httpx, "requests": _put_under_requests}
    how |= {"aiohttp": _put_under_aiohttp}
    how.get(library, _put_under_models)(module, {"policy": profile, "registry": registry})


def replace_method(kind: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a method of a class by what `make` makes of it."""
    original = getattr(kind, name)
    setattr(kind, name, wraps(original)(make(original)))


def _put_under_httpx(module: Any, arguments: dict[str, Any]) -> None:
    ours = _httpx_integration(module.__name__)
    name = CLIENTS.format(module.__name__)
    sync = _shared(ours.Transport, name, arguments).handle_request
    later = _shared(ours.AsyncTransport, name, arguments).handle_async_request
    replace_method(module.HTTPTransport, "handle_request", partial(_through, sync))
    replace_method(module.AsyncHTTPTransport, "handle_async_request", partial(_through_async, later))


def _put_under_requests(module: Any, arguments: dict[str, Any]) -> None:
    from requests.adapters import BaseAdapter

    from opero.integrations.requests import Adapter, has_own_retries

    class Shared(Adapter):
        _name = CLIENTS.format("requests")

        def _why_once(self, error: Exception, request: Any, **kwargs: Any) -> str | None:
            if has_own_retries(_SENDER.get().args[0]):
                return OWN_RETRIES
            return super()._why_once(error, request, **kwargs)

    class ByClient(BaseAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            return _SENDER.get()(request, *args, **kwargs)

    shared = Shared(**arguments, adapter=ByClient())
    replace_method(module.adapters.HTTPAdapter, "send", partial(_through, shared.send))


def _put_under_aiohttp(module: Any, arguments: dict[str, Any]) -> None:
    from opero.integrations.aiohttp import Middleware

    class Shared(Middleware):
        _name = CLIENTS.format("aiohttp")

    shared = Shared(**arguments)

    def make(original: Any) -> Any:
        async def request(session: Any, *args: Any, middlewares: Any = None, **kwargs: Any) -> Any:
            chosen = session._middlewares if middlewares is None else middlewares
            if not any(isinstance(each, Middleware) for each in chosen):
                chosen = (*chosen, shared)  # the innermost
            return await original(session, *args, middlewares=chosen, **kwargs)

        return request

    replace_method(module.ClientSession, "_request", make)


def _put_under_models(module: Any, arguments: dict[str, Any]) -> None:
    from opero.integrations.models import METHODS, transport_for

    for client, base in ((module.Client, "SyncAPIClient"), (module.AsyncClient, "AsyncAPIClient")):
        ours = transport_for(module.DefaultHttpxClient, is_async=base.startswith("Async"))
        shared = _shared(ours, CLIENTS.format(module.__name__), {**arguments, "retry_methods": METHODS})
        kind = next(each for each in client.__mro__ if each.__name__ == base)
        replace_method(kind, "__init__", partial(_initialised, shared, _via(ours, shared)))


def _initialised(shared: Any, via: Any, original: Any) -> Any:
    """Return an `__init__` of clients of a model API that puts their requests under the policy."""
    from opero.integrations.httpx_transports import PolicyTransport
    from opero.integrations.models import change_transports

    def under(inner: Any) -> Any:
        return inner if isinstance(inner, PolicyTransport) else via(inner)

    def __init__(client: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(client, *args, **kwargs)
        change_transports(client._client, under)
        if isinstance(client._client._transport, via) and shared.bound.policy.in_force("retry") is not None:
            client.max_retries = 0

    return __init__


def _via(ours: Any, shared: Any) -> Any:
    """Return a class of transports that send the requests of one client, under the policy that all share."""

    def original(transport: Any, request: Any) -> Any:
        return getattr(transport, ours._method)(request)

    class Via(ours):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            self.transport, self.bound, self._repeats = inner, shared.bound, shared._repeats

    over = _through if ours._method == "handle_request" else _through_async
    beyond = getattr(ours, ours._method)

    def handle(via: Any, request: Any) -> Any:
        return over(partial(beyond, via), original)(via.transport, request)

    setattr(Via, ours._method, handle)
    return Via


def _httpx_integration(library: str) -> Any:
    if library == "httpx2":
        from opero.integrations import httpx2

        return httpx2
    from opero.integrations import httpx

    return httpx


def _shared(ours: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Return the transport that all clients of a library share: it sends each request by the client it comes from."""
    from opero.integrations.httpx_transports import own_retries

    class Shared(ours):  # type: ignore[misc]
        _name = name

        def _why_once(self, error: Exception, request: Any) -> str | None:
            if isinstance(error, self._unsent) and own_retries(_SENDER.get().args[0]):
                return OWN_RETRIES
            return super()._why_once(error, request)  # type: ignore[no-any-return]

    class ByClient:
        def handle_request(self, request: Any) -> Any:
            return _SENDER.get()(request)

        async def handle_async_request(self, request: Any) -> Any:
            return await _SENDER.get()(request)

    return Shared(**arguments, transport=ByClient())


def _through(shared: Callable[..., Any], original: Any) -> Any:
    """Return a method that sends a request by `shared`, which in turn sends it by the original."""

    def send(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if IS_UNDER.get():
            return original(client, request, *args, **kwargs)
        token = _SENDER.set(partial(original, client))
        try:
            return shared(request, *args, **kwargs)
        finally:
            _SENDER.reset(token)

    return send


def _through_async(shared: Any, original: Any) -> Any:
    """Return what `_through` does, for an async method."""

    async def send(client: Any, request: Any) -> Any:
        if IS_UNDER.get():
            return await original(client, request)
        token = _SENDER.set(partial(original, client))
        try:
            return await shared(request)
        finally:
            _SENDER.reset(token)

    return send
