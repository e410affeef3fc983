"""What the clients of HTTP have in common: when a request may be repeated, and what its callers see of a failure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opero.binding.client_fit import client_refusal
from opero.binding.target import TRAITS, Traits
from opero.config.declaration import where
from opero.decorators import decorating
from opero.errors import (
    AllFailedError,
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    ConfigError,
    OperoError,
    RateLimitExceededError,
    RejectedError,
    ThrottledError,
    shortened,
)
from opero.executors.given_up import give_up

if TYPE_CHECKING:
    from opero.policies.options import Options
    from opero.policies.policy import Policy
    from opero.registry.registry import Registry
    from opero.runtime.clock import Clock

IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
"""The methods whose requests may be repeated: several are as good as one (RFC 9110, section 9.2.2)."""
KEY = "Idempotency-Key"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
MOST_TEXT = 300

IS_UNDER: ContextVar[bool] = ContextVar("opero_request_is_under_policy", default=False)
"""Whether what runs sends a request that is under a policy already. It is set only in processes in which `opero run`
has put a profile under the clients of a library, which leaves such a request alone."""
LIBRARIES_UNDER: set[str] = set()
"""The libraries whose clients `opero run` has put a profile under, in this process."""


def marked(send: Callable[..., Any], library: str) -> Callable[..., Any]:
    """Return a sync function that sends requests, and says that they are under a policy where anything asks for it."""
    if library not in LIBRARIES_UNDER:
        return send

    def sending(*args: Any, **kwargs: Any) -> Any:
        token = IS_UNDER.set(True)
        try:
            return send(*args, **kwargs)
        finally:
            IS_UNDER.reset(token)

    return sending


def marked_async(send: Callable[..., Any], library: str) -> Callable[..., Any]:
    """Return what `marked` does, for an async function."""
    if library not in LIBRARIES_UNDER:
        return send

    async def sending(request: Any) -> Any:
        token = IS_UNDER.set(True)
        try:
            return await send(request)
        finally:
            IS_UNDER.reset(token)

    return sending


class Repeats:
    """When a request may be repeated.

    Args:
        methods: the methods whose requests may be repeated. Those of others may if they have an idempotency key.
        idempotency_key: whether to add a header `Idempotency-Key`, or the name of that header.

    Attributes:
        adds_key: whether requests of other methods get a key.

    Raises:
        ConfigError: a value is invalid.
    """

    def __init__(self, methods: Collection[str], idempotency_key: bool | str) -> None:
        if isinstance(methods, str) or not all(isinstance(each, str) and _TOKEN.fullmatch(each) for each in methods):
            raise ConfigError(
                'retry_methods expects a collection of HTTP methods, such as {"GET", "POST"}, not '
                f"{shortened(repr(methods), MOST_TEXT)}"
            )
        if not isinstance(idempotency_key, bool) and not _is_header(idempotency_key):
            raise ConfigError(
                "idempotency_key expects True, False or the name of a header, not "
                f"{shortened(repr(idempotency_key), MOST_TEXT)}"
            )
        self.methods = frozenset(each.upper() for each in methods)
        self.header = idempotency_key if isinstance(idempotency_key, str) else KEY
        self.adds_key = idempotency_key is not False

    def prepare(self, method: str, headers: Any) -> None:
        """Add a key to the headers of a request that may be repeated only with one. Each attempt has the same."""
        if self.adds_key and method.upper() not in self.methods and self.header not in headers:
            headers[self.header] = str(uuid.uuid4())

    def why_once(self, method: str, headers: Any) -> str | None:
        """Return why a request must not be repeated; None if it may be."""
        if method.upper() in self.methods or self.header in headers:
            return None
        return f"{method} is not among retry_methods, and the request has no header {self.header}"


def _is_header(name: object) -> bool:
    return isinstance(name, str) and _TOKEN.fullmatch(name) is not None


ONE_READ = "its body can be read only once; pass bytes, or an object that can be iterated over again"
"""Why a request must not be repeated whose body is a stream."""
NOT_IN_MEMORY = "its body would be read by two attempts at once; pass bytes"
"""Why a request must not be hedged whose body is a stream or a file."""
STILL_READ = "the attempt that timed out may still be reading its body; pass bytes"
"""Why a sync request must not be repeated whose body is a file, after an attempt timeout."""


def under_policy(
    send: Callable[..., Any],
    name: str,
    why_once: Callable[..., str | None],
    host: Callable[..., str],
    policy: str | Policy | None,
    registry: Registry | None,
    clock: Clock | None,
    options: Options,
    why_alone: Callable[..., str | None] | None = None,
) -> Any:
    """Return a function that sends requests under a policy.

    Args:
        send: sends a request, and returns the response.
        name: its name in `functions:`, "module:name".
        why_once: called with the exception of a failed attempt and the arguments of `send`; see `Traits`.
        host: returns the origin of a request: scheme, host and port. Each has a circuit breaker, a rate limit and a
            bulkhead of its own, unless the policy says otherwise.
        policy, registry, clock, options: as for `@opero`.
        why_alone: called with the arguments of `send`; see `Traits`. Default: requests cannot be hedged.

    Raises:
        ConfigError: the policy, if it is known already, does not fit.
    """
    send.__module__, _, send.__qualname__ = name.partition(":")
    setattr(send, TRAITS, Traits(client_refusal, why_once, {"host": host}, why_alone))
    bound = decorating(policy, registry, clock, options, where(2))(send)
    if registry is not None:
        bound.binding.resolved()  # there is no reason to wait for the first request
    return bound


REJECTIONS = (RejectedError, CircuitOpenError, ThrottledError, RateLimitExceededError, BulkheadFullError)


def own_errors(
    module: str, timeout: type[Exception], rejection: type[Exception]
) -> dict[type[OperoError], type[OperoError]]:
    """Return classes for exceptions of opero that are also a client's own, so that `except` for either finds them.

    Args:
        module: the module that has them as attributes, for pickles.
        timeout: the client's class for what took too long.
        rejection: the client's class for requests that were not sent.
    """
    bases: dict[type[OperoError], type[Exception]] = {CallTimeoutError: timeout}
    bases |= dict.fromkeys(REJECTIONS, rejection)
    found: dict[type[OperoError], type[OperoError]] = {}
    for kind, base in bases.items():
        doc = f"The `opero.{kind.__name__}` of a request, which is also a `{base.__module__}.{base.__qualname__}`."
        found[kind] = type(kind.__name__, (kind, base), {"__module__": module, "__doc__": doc})
    return found


def for_caller(error: OperoError, own: Mapping[type[OperoError], type[OperoError]], **attributes: Any) -> Exception:
    """Return what a client raises for an exception of opero: its own last exception, or one that is also its own.

    Args:
        error: the exception.
        own: what `own_errors` returns.
        **attributes: what the client's exceptions have besides.
    """
    last: Exception = error
    if isinstance(error, AllFailedError):
        last = error.errors[-1]
        last.add_note(f"opero: {error}")
        give_up(last)  # as `error` is, so that a bound function around the client does not retry it
    kind = own.get(type(last)) if isinstance(last, OperoError) else None
    if kind is None:
        return last
    made: Exception = kind.__new__(kind, *last.args)
    made.args = last.args
    made.__dict__.update({**vars(last), **attributes})
    made.__cause__, made.__suppress_context__ = last.__cause__, True
    return made.with_traceback(last.__traceback__)
