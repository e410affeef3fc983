"""The transports of httpx and httpx2, which have the same interface: what is the same for both, and imports neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from opero.errors import CallTimeoutError, ConfigError, FailedResponseError, OperoError
from opero.executors.scope_keys import origin
from opero.integrations.http_clients import (
    IDEMPOTENT,
    NOT_IN_MEMORY,
    ONE_READ,
    STILL_READ,
    Repeats,
    for_caller,
    marked,
    marked_async,
    under_policy,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType
    from typing import Unpack

    from opero.policies.options import Options
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock


class PolicyTransport:
    """Sends requests by another transport, under a policy.

    Each request that a client sends is a call of its own, also one that follows a redirect. It ends with the headers of
    the response: a body that is read later is outside of the policy.

    A request is repeated only if that is safe: if its method is idempotent, it has an idempotency key, or nothing of it
    was sent, as the connection could not be made; and only if its body can be sent again. It is hedged only if its
    method is idempotent or it has such a key, and its body is in memory. A response whose place
    another attempt takes is closed. The response of the last attempt is returned as it is, such as a 503. If all
    attempts raised exceptions, the last of them is raised, with a note about the others; what opero raises itself, such
    as `opero.CircuitOpenError`, is an exception of the client as well.

    With `scope: auto`, the default, each origin (scheme, host and port) has a circuit breaker, a rate limit and a
    bulkhead of its own, so that one host that is down concerns no other; `scope: profile` keeps one of each.

    Args:
        policy: the name of a profile, resolved at the first request, or a `Policy`. Without it, `retries` is 3 unless
            the options set it.
        registry: the registry of the profile. Default: the default registry, at the first request.
        transport: sends the requests. Default: `HTTPTransport()`, or `AsyncHTTPTransport()`. Settings for connections,
            such as `http2`, `verify` and `limits`, are its arguments, as a client does not pass them to a transport
            that it is given.
        idempotency_key: whether to add a header `Idempotency-Key`, the same for all attempts, to requests whose method
            is not among `retry_methods`, unless they have one; or another name for that header.
        retry_methods: the methods whose requests may be repeated. Default: the idempotent ones: DELETE, GET, HEAD,
            OPTIONS, PUT and TRACE.
        clock: the source of time and randomness. Default: the system's.
        **options: flat options and policies, as of `@opero`, which lie over the profile.

    Attributes:
        bound: the bound function that sends requests, with `.stats`, `.policy` and so on.
        transport: the transport by which it sends them.

    Raises:
        ConfigError: an argument is invalid, or the policy does not fit: it has a cache, for example. A profile of the
            default registry is checked at the first request.
    """

    _client: ClassVar[Any]
    """The module of the client."""
    _own: ClassVar[Mapping[type[OperoError], type[OperoError]]]
    """The exceptions of opero that are also the client's."""
    _method: ClassVar[str]
    """The method by which a transport handles a request."""
    _name: ClassVar[str] = ""
    """The name in `functions:`. Default: that of the class."""

    def __init__(
        self,
        policy: str | Policy | None = None,
        *,
        registry: Registry | None = None,
        transport: Any = None,
        idempotency_key: bool | str = False,
        retry_methods: Collection[str] = IDEMPOTENT,
        clock: Clock | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._repeats = Repeats(retry_methods, idempotency_key)
        self._unsent = (self._client.ConnectError, self._client.ConnectTimeout, self._client.PoolTimeout)
        own = type(self)
        if transport is not None and not callable(getattr(transport, self._method, None)):
            raise ConfigError(
                f"transport expects a transport of {self._client.__name__} that has {self._method}(), not a value of "
                f"type {type(transport).__name__}{self._cure(transport)}"
            )
        if isinstance(transport, PolicyTransport):
            raise ConfigError(
                "transport is under a policy already, and the retries of two would multiply: use a single "
                f"{own.__name__}, with the transport that sends the requests"
            )
        if retries := own_retries(transport):
            raise ConfigError(
                f"transport makes {retries!r} retries of its own, which would multiply with those of the policy: "
                "create it without retries="
            )
        named = next(each for each in own.__mro__ if each.__module__.startswith("opero."))
        self.transport: Any = transport if transport is not None else self._default()
        self.bound: Any = under_policy(
            self._sender(getattr(self.transport, self._method)),
            self._name or f"{named.__module__}:{named.__name__}",
            self._why_once,
            _origin,
            policy,
            registry,
            clock,
            options,
            self._why_alone,
        )

    def _default(self) -> Any:
        raise NotImplementedError

    def _sender(self, handle: Callable[[Any], Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def _cure(self, transport: object) -> str:
        sync = "Transport" if self._method == "handle_async_request" else "AsyncTransport"
        other = "handle_request" if self._method == "handle_async_request" else "handle_async_request"
        return f"; it has {other}(), so use {sync}" if hasattr(transport, other) else ""

    def _why_once(self, error: Exception, request: Any) -> str | None:
        if isinstance(error, self._unsent):
            return None
        if isinstance(error, FailedResponseError) and _is_refused(error.response):
            return "the service says so in the header x-should-retry"
        reason = self._repeats.why_once(request.method, request.headers)
        return reason if reason is not None or _is_replayable(request) else ONE_READ

    def _why_alone(self, request: Any) -> str | None:
        reason = self._repeats.why_once(request.method, request.headers)
        return reason if reason is not None or _is_in_memory(request) else NOT_IN_MEMORY


class SyncPolicyTransport(PolicyTransport):
    """The transport of sync clients."""

    _method = "handle_request"

    def _why_once(self, error: Exception, request: Any) -> str | None:
        if isinstance(error, CallTimeoutError) and not _is_in_memory(request):
            return STILL_READ
        return super()._why_once(error, request)

    def _default(self) -> Any:
        return self._client.HTTPTransport()

    def _sender(self, handle: Callable[[Any], Any]) -> Callable[..., Any]:
        handle = marked(handle, self._client.__name__)

        def send(request: Any) -> Any:
            return handle(request)

        return send

    def handle_request(self, request: Any) -> Any:
        """Send a request under the policy."""
        self._repeats.prepare(request.method, request.headers)
        try:
            return self.bound(request)
        except OperoError as error:
            raised = for_caller(error, self._own, _request=request)
        try:
            raise raised
        finally:
            del raised

    def close(self) -> None:
        """Close the transport that sends the requests."""
        self.transport.close()

    def __enter__(self) -> Self:
        self.transport.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.transport.__exit__(exc_type, exc_value, traceback)


class AsyncPolicyTransport(PolicyTransport):
    """The transport of async clients, under asyncio and trio."""

    _method = "handle_async_request"

    def _default(self) -> Any:
        return self._client.AsyncHTTPTransport()

    def _sender(self, handle: Callable[[Any], Any]) -> Callable[..., Any]:
        handle = marked_async(handle, self._client.__name__)

        async def send(request: Any) -> Any:
            return await handle(request)

        return send

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request under the policy."""
        self._repeats.prepare(request.method, request.headers)
        try:
            return await self.bound(request)
        except OperoError as error:
            raised = for_caller(error, self._own, _request=request)
        try:
            raise raised
        finally:
            del raised

    async def aclose(self) -> None:
        """Close the transport that sends the requests."""
        await self.transport.aclose()

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.transport.__aexit__(exc_type, exc_value, traceback)


def _origin(request: Any) -> str:
    """Return scheme, host and port of a request."""
    url = request.url
    return origin(url.scheme, url.host, url.port)


def own_retries(transport: Any) -> Any:
    """Return how often a transport by itself tries again to connect."""
    return getattr(getattr(transport, "_pool", None), "_retries", 0)


def _is_refused(response: Any) -> bool:
    """Return whether the service says that a request should not be repeated, as model APIs do."""
    return bool(response.headers.get("x-should-retry") == "false")


def _is_in_memory(request: Any) -> bool:
    """Return whether the body of a request has been read, as it is for one that is given as bytes or JSON."""
    try:
        return request.content is not None
    except Exception:  # noqa: BLE001  # RequestNotRead, of either client
        return False


def _is_replayable(request: Any) -> bool:
    """Return whether the body of a request can be sent again."""
    if _is_in_memory(request):
        return True
    stream = request.stream
    fields = getattr(stream, "fields", None)
    if fields is not None:  # a form with files, each of which is read from its start
        return all(_can_seek(each.file) for each in fields if hasattr(each, "file"))
    source = getattr(stream, "_stream", None)
    if source is None or hasattr(source, "read") or hasattr(source, "aread"):
        return False
    is_iterator = isinstance(source, Iterator) or hasattr(source, "__anext__")
    return not is_iterator and (isinstance(source, Iterable) or hasattr(source, "__aiter__"))


def _can_seek(file: Any) -> bool:
    if isinstance(file, str | bytes):
        return True
    try:
        return bool(file.seekable())
    except Exception:  # noqa: BLE001  # the file is the user's
        return False
