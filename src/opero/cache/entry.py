"""The value that a cache holds for a key, with its times."""

from __future__ import annotations

from typing import Any

FOREVER = float("inf")
NEVER = float("-inf")


class SerializationError(Exception):
    """A serializer cannot write a value so that it reads back the same."""


class Entry:
    """A cached result or exception, with its times as readings of its store's clock.

    Attributes:
        until: before this time the value may be returned without further checks; `NEVER` if it must always be checked.
        value: the result; the exception if `is_error`; or encoded bytes.
        refresh_at: from this time on, a reader refreshes the value in the background.
        expires: from this time on, the value is stale.
        usable: from this time on, the value must not be used at all.
        is_error: whether the value is an exception to raise.
        tags: the tags of the result.
        written: when it was stored.
    """

    __slots__ = ("expires", "is_error", "refresh_at", "tags", "until", "usable", "value", "written")

    def __init__(
        self,
        value: Any,
        refresh_at: float = FOREVER,
        expires: float = FOREVER,
        usable: float = FOREVER,
        *,
        is_error: bool = False,
        tags: tuple[str, ...] = (),
        written: float = 0.0,
    ) -> None:
        self.until = NEVER if is_error else refresh_at
        self.value = value
        self.refresh_at = refresh_at
        self.expires = expires
        self.usable = usable
        self.is_error = is_error
        self.tags = tags
        self.written = written
