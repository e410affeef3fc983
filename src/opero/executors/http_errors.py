"""Reads the HTTP status and Retry-After header from exceptions of any HTTP library, without importing one."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["retry_after", "status_of"]


def _response_of(error: Exception) -> Any:
    # A requests.Response with an error status is falsy, so callers must compare with None.
    return getattr(error, "response", None)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status in an exception of requests, httpx, aiohttp, urllib, botocore or similar libraries."""
    response = _response_of(error)
    if isinstance(response, Mapping):  # botocore
        metadata = response.get("ResponseMetadata")
        found = metadata.get("HTTPStatusCode") if isinstance(metadata, Mapping) else None
        return found if isinstance(found, int) else None
    for holder, name in (
        (response, "status_code"),  # requests, httpx
        (response, "status"),
        (error, "status_code"),  # API clients
        (error, "status"),  # aiohttp
        (error, "code"),  # urllib
    ):
        found = getattr(holder, name, None) if holder is not None else None
        if isinstance(found, int) and not isinstance(found, bool) and 100 <= found <= 599:
            return int(found)
    return None


def retry_after(error: Exception, now: float) -> float | None:
    """Return the seconds to wait by the response's Retry-After header, or None if there is no valid one.

    Args:
        error: an exception that may have a response.
        now: the current time in seconds since the epoch, for a header with a date.
    """
    response = _response_of(error)
    if isinstance(response, Mapping):
        metadata = response.get("ResponseMetadata")
        headers = metadata.get("HTTPHeaders") if isinstance(metadata, Mapping) else None
    else:
        headers = getattr(response, "headers", None)
        if headers is None:
            headers = getattr(error, "headers", None)
    if headers is None or not hasattr(headers, "get"):
        return None
    value = headers.get("Retry-After") or headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            seconds = parsedate_to_datetime(str(value)).timestamp() - now
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
