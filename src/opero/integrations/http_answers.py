"""What a web application answers where a policy has ended the call of a request: the same in each framework."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from opero.errors import AllFailedError, CallTimeoutError, OperoError, RejectedError
from opero.failures.kinds import Kind
from opero.registry.checks import check
from opero.registry.default import get_default_registry

if TYPE_CHECKING:
    from opero.registry.registry import Registry

ANSWERED = (RejectedError, CallTimeoutError, AllFailedError)
"""The exceptions for which there may be an answer."""
PASSING = (Kind.TRANSIENT, Kind.THROTTLED)


def answer_to(error: OperoError) -> tuple[HTTPStatus, dict[str, str]] | None:
    """Return the status and headers of the answer to a request whose call has ended in an exception of `ANSWERED`.

    - 503 if a policy has rejected the call (open circuit, throttle, rate limit, bulkhead), or all attempts have failed
      and the last of them for a reason that passes: a failure of the kind `transient` or `throttled`. With
      `Retry-After` if it is known when another call may succeed.
    - 504 if a timeout has ended it.
    - None if all attempts have failed for another reason: that is an error in this program or its requests.
    """
    if isinstance(error, CallTimeoutError):
        return HTTPStatus.GATEWAY_TIMEOUT, {}
    if isinstance(error, AllFailedError) and (not error.kinds or error.kinds[-1] not in PASSING):
        return None
    wait = getattr(error, "retry_in", None)
    headers = {} if wait is None or not math.isfinite(wait) else {"Retry-After": str(max(1, math.ceil(wait)))}
    return HTTPStatus.SERVICE_UNAVAILABLE, headers


@contextmanager
def configured(registry: Registry | None = None, *, watch: bool = True) -> Iterator[Registry]:
    """Check the configuration, and watch it while the block runs.

    Profiles and the functions that are bound so far are checked without a call. An entry of `functions:` may be for a
    function whose module is imported later.

    Args:
        registry: the registry. Default: the default registry.
        watch: whether to reload when its files change; without files nothing is watched.

    Raises:
        ConfigError: the configuration is invalid; it lists all problems, each with its place.
    """
    registry = registry or get_default_registry()
    check(registry.configuration, registry._bindings(), complete=False)
    with ExitStack() as stack:
        if watch and registry.watched_paths():
            stack.enter_context(registry.watch())
        yield registry
