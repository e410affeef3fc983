"""gRPC under a policy: `grpc.intercept_channel(channel, Interceptor(policy="orders"))`, and `AioInterceptor`.

Calls with one request, answered by one message or by a stream, run under the policy. Those whose requests are a stream
pass unchanged, as a stream of requests cannot be repeated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio

from opero.binding.target import TRAITS, Traits
from opero.config.declaration import where
from opero.decorators import decorating
from opero.errors import ConfigError, OperoError, shortened
from opero.executors.deadlines import remaining
from opero.integrations.http_clients import for_caller, own_errors

if TYPE_CHECKING:
    from typing import Unpack

    from opero.policies.options import Options
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

__all__ = ["AioInterceptor", "Interceptor"]

_UNSENT = ("failed to connect to all addresses", "dns resolution failed", "name resolution", "empty address list")
"""How the details of an UNAVAILABLE begin whose request has not left this process."""


class _Status:
    """The status that callers read off an `RpcError`, for exceptions that opero raises itself."""

    _status = grpc.StatusCode.UNAVAILABLE
    __str__, __repr__ = Exception.__str__, Exception.__repr__

    def code(self) -> Any:
        return self._status

    def details(self) -> str:
        return str(self)

    def initial_metadata(self) -> None:
        return None

    def trailing_metadata(self) -> None:
        return None

    def debug_error_string(self) -> str:
        return str(self)


class _Refused(_Status, grpc.aio.AioRpcError):  # type: ignore[misc]
    pass


class _TimedOut(_Refused):
    _status = grpc.StatusCode.DEADLINE_EXCEEDED


_OWN = own_errors(__name__, _TimedOut, _Refused)
globals().update({each.__name__: each for each in _OWN.values()})  # where pickles look for them


class _Details(NamedTuple):
    """The details of a call, as `grpc.ClientCallDetails` names them."""

    method: Any
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Policed:
    """What interceptors have in common: see `Interceptor`."""

    def __init__(
        self,
        policy: str | Policy | None = None,
        *,
        registry: Registry | None = None,
        retry_methods: Collection[str] = (),
        clock: Clock | None = None,
        **options: Unpack[Options],
    ) -> None:
        if isinstance(retry_methods, str) or not all(isinstance(each, str) for each in retry_methods):
            raise ConfigError(
                'retry_methods expects a collection of methods or patterns, such as {"/shop.Orders/Get*"}, not '
                f"{shortened(repr(retry_methods), 100)}"
            )
        self._patterns = tuple(retry_methods)
        self._arguments: Any = policy, registry, clock, options
        self._place = where(2)
        self.bound: Any = self._bind(self._unary(), options)
        if registry is not None:
            self.bound.binding.resolved()  # there is no reason to wait for the first call

    @cached_property
    def bound_stream(self) -> Any:
        """The bound function of calls that are answered by a stream."""
        options: Options = {**self._arguments[3], "hedge": False}  # type: ignore[typeddict-item]  # it is of any form
        return self._bind(self._streaming(), options)

    def _bind(self, send: Any, options: Any) -> Any:
        policy, registry, clock, _ = self._arguments
        send.__module__, send.__qualname__ = __name__, type(self).__name__  # its name in `functions:`
        setattr(send, TRAITS, Traits(_refusal, self._why_once, why_alone=self._why_alone))
        return decorating(policy, registry, clock, options, self._place)(send)

    def _unary(self) -> Callable[..., Any]:
        raise NotImplementedError

    def _streaming(self) -> Callable[..., Any]:
        raise NotImplementedError

    def _why_alone(self, proceed: Any, details: Any, request: Any) -> str | None:
        method = details.method if isinstance(details.method, str) else details.method.decode()
        if any(fnmatchcase(method, each) for each in self._patterns):
            return None
        return f"{method} is not among retry_methods"

    def _why_once(self, error: Exception, proceed: Any, details: Any, request: Any) -> str | None:
        code: Any = getattr(error, "code", None)
        said: Any = getattr(error, "details", None)
        if callable(code) and callable(said) and code() is grpc.StatusCode.UNAVAILABLE:
            text = str(said()).lower()
            if text.startswith(_UNSENT):
                return None
        return self._why_alone(proceed, details, request)


class Interceptor(_Policed, grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Makes the calls of a channel under a policy.

        channel = grpc.intercept_channel(grpc.insecure_channel(target), Interceptor(policy="orders"))

    A call is repeated only if that is safe: if its method is among `retry_methods`, or nothing of it was sent, as the
    connection could not be made. A stream of answers is repeated until its first message, and begins when it is read.
    The deadline of a call is what the policy, and the code that makes it, leave of its own timeout. The last exception
    is raised as it is; what opero raises itself, such as `opero.CircuitOpenError`, is a `grpc.RpcError` as well, with
    the code UNAVAILABLE or DEADLINE_EXCEEDED. The channel must have no retries of its own in its service config.

    Circuit breaker and limits of a profile hold for all calls; those of a `Policy` for both kinds of calls apart.

    Args:
        policy: the name of a profile, resolved at the first call, or a `Policy`. Without it, `retries` is 3 unless the
            options set it.
        registry: the registry of the profile. Default: the default registry, at the first call.
        retry_methods: the methods that may be repeated and hedged, with the wildcards * and ?, such as
            {"/shop.Orders/Get*"}. Default: none.
        clock: the source of time and randomness. Default: the system's.
        **options: flat options and policies, as of `@opero`, which lie over the profile.

    Attributes:
        bound: the bound function of calls that are answered by one message, with `.stats`, `.policy` and so on.
        bound_stream: that of calls that are answered by a stream.

    Raises:
        ConfigError: an argument is invalid, or the policy does not fit: it has a cache, for example.
    """

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        if ".future." in continuation.__qualname__:
            raise ConfigError(
                f"{client_call_details.method}: a future cannot be under a policy: call the method in a thread of your "
                "own, or use grpc.aio with AioInterceptor"
            )
        with _as_own():
            return self.bound(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _Stream(self.bound_stream, continuation, _limited(client_call_details), request)

    def _unary(self) -> Callable[..., Any]:
        def send(proceed: Any, details: Any, request: Any) -> Any:
            call = proceed(_limited(details), request)
            call.result()  # which raises what has failed
            return call

        return send

    def _streaming(self) -> Callable[..., Any]:
        def receive(proceed: Any, details: Any, request: Any) -> Iterator[Any]:
            call = proceed(details, request)
            try:
                yield from call
            finally:
                call.cancel()  # which does nothing if it has ended

        return receive


class _Stream:
    """A stream of answers, with what the latest attempt tells of itself."""

    def __init__(self, bound: Any, continuation: Any, details: Any, request: Any) -> None:
        self._calls: list[Any] = []

        def proceed(details: Any, request: Any) -> Any:
            self._calls.append(continuation(details, request))
            return self._calls[-1]

        self._messages = bound(proceed, details, request)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with _as_own():
            return next(self._messages)

    def cancel(self) -> None:
        """End the stream."""
        for each in self._calls[-1:]:
            each.cancel()

    def __getattr__(self, name: str) -> Any:
        calls = self.__dict__["_calls"]
        if not calls:
            raise AttributeError(f"{name}: the stream has not begun; read its first message")
        return getattr(calls[-1], name)


class AioInterceptor(_Policed):
    """Makes the calls of an async channel under a policy, as `Interceptor` does.

        channel = grpc.aio.insecure_channel(target, interceptors=AioInterceptor(policy="orders").interceptors)

    Its arguments are those of `Interceptor`. A stream of answers is read by `async for`.

    Attributes:
        interceptors: what a channel receives: it takes one interceptor for each kind of call.
        bound, bound_stream: as of `Interceptor`.
    """

    @property
    def interceptors(self) -> list[Any]:
        return [_ForUnary(self), _ForStreams(self)]

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        with _as_own():
            return await self.bound(continuation, client_call_details, request)

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        messages = self.bound_stream(continuation, _limited(client_call_details), request)
        first: list[Any] = []
        with _as_own(), suppress(StopAsyncIteration):  # a call has to have begun when this returns
            first.append(await anext(messages))
        return _rest(first, messages)

    def _unary(self) -> Callable[..., Any]:
        async def send(proceed: Any, details: Any, request: Any) -> Any:
            call = await proceed(_limited(details), request)
            await call
            return call

        return send

    def _streaming(self) -> Callable[..., Any]:
        async def receive(proceed: Any, details: Any, request: Any) -> AsyncIterator[Any]:
            call = await proceed(details, request)
            try:
                async for message in call:
                    yield message
            finally:
                call.cancel()

        return receive


class _ForUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, policed: AioInterceptor) -> None:
        self.intercept = policed.intercept_unary_unary

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self.intercept(continuation, client_call_details, request)


class _ForStreams(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, policed: AioInterceptor) -> None:
        self.intercept = policed.intercept_unary_stream

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self.intercept(continuation, client_call_details, request)


async def _rest(first: list[Any], messages: Any) -> AsyncIterator[Any]:
    try:
        with _as_own():
            for each in first:
                yield each
            async for each in messages:
                yield each
    finally:
        await messages.aclose()


def _refusal(policy: Policy) -> str | None:
    """Return why a policy cannot be on a channel, with the cure."""
    if policy.active("cache") is not None:
        return "the answer of a channel is a call, which is not cached: add cache=False here"
    if policy.active("fallback") is not None:
        return "the answer of a channel is a call, which a fallback cannot replace: add fallback=False here"
    return None


@contextmanager
def _as_own() -> Iterator[None]:
    """Raise what opero raises as an exception that is also gRPC's."""
    try:
        yield
    except OperoError as error:
        raised = for_caller(error, _OWN)
    else:
        return
    try:
        raise raised
    finally:
        del raised


def _limited(details: Any) -> Any:
    """Return the details of a call whose timeout is no longer than the deadline of the code that runs."""
    left, timeout = remaining(), details.timeout
    if left is None or (timeout is not None and timeout <= left):
        return details
    fields = (details.metadata, details.credentials, details.wait_for_ready)
    if isinstance(details, grpc.aio.ClientCallDetails):
        return grpc.aio.ClientCallDetails(details.method, left, *fields)
    return _Details(details.method, left, *fields, details.compression)
