"""Returned responses that are failures: an attempt that returns one counts like an attempt that raises."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opero.errors import FailedResponseError, ResultRejectedError
from opero.failures import ORDINARY, failed_status, is_response

if TYPE_CHECKING:
    from collections.abc import Collection

    from opero.runtime.hosts import Host


async def close_response(host: Host, error: Exception) -> None:
    """Close the response of a failed attempt whose place another result takes: it may hold a connection.

    Other results that `retry_if_result` has rejected are left alone.
    """
    if isinstance(error, ResultRejectedError):
        await close_result(host, error.result)


async def close_result(host: Host, result: Any) -> None:
    """Close a result that no caller gets, if it is a response."""
    if is_response(result):
        with suppress(Exception):  # the response is the user's
            await host.close(result)


class ResponseCheck:
    """Finds out whether what an attempt returned is a failed response.

    The layers of a policy handle exceptions, so it raises one. The outermost returns the response to the caller.

    Args:
        name: the function's name, for messages.
        statuses: the statuses that are failures besides those from 400 on.
    """

    __slots__ = ("_name", "_statuses")

    def __init__(self, name: str, statuses: Collection[int] = ()) -> None:
        self._name = name
        self._statuses = statuses

    def __call__(self, result: Any) -> None:
        """Check a result.

        Raises:
            FailedResponseError: it is a failed response.
        """
        status = failed_status(result, self._statuses)
        if status is not None:
            raise FailedResponseError(
                f"{self._name} returned a response with the status {status}", result=result, status=status
            )

    def fails(self, result: Any) -> bool:
        """Return whether a result is a failed response."""
        return type(result) not in ORDINARY and failed_status(result, self._statuses) is not None
