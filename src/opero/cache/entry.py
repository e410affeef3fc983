"""What a cache holds for a key."""

from __future__ import annotations

from typing import Any

__all__ = ["FOREVER", "NEVER", "Entry"]

FOREVER = float("inf")
NEVER = float("-inf")


class Entry:
    """A result, or an exception, and its times: moments of the clock of whatever store it is in.

    Attributes:
        until: readers may take the value up to then without looking any further; `NEVER` where they must look.
        value: the result; the exception where `is_error`; or bytes to be decoded.
        refresh_at: from then on a reader refreshes it in the background.
        expires: from then on it is stale.
        usable: from then on it is gone.
        is_error: the value is an exception to raise.
        tags: the groups that it belongs to.
    """

    __slots__ = ("expires", "is_error", "refresh_at", "tags", "until", "usable", "value")

    def __init__(
        self,
        value: Any,
        refresh_at: float = FOREVER,
        expires: float = FOREVER,
        usable: float = FOREVER,
        *,
        is_error: bool = False,
        tags: tuple[str, ...] = (),
    ) -> None:
        self.until = NEVER if is_error else refresh_at
        self.value = value
        self.refresh_at = refresh_at
        self.expires = expires
        self.usable = usable
        self.is_error = is_error
        self.tags = tags
