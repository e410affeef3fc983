"""How many calls at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from opero.policies.base import BasePolicy
from opero.policies.types import Duration, PositiveCount, Scope

if TYPE_CHECKING:
    from opero.policies.types import DurationLike

__all__ = ["BulkheadPolicy"]


class BulkheadPolicy(BasePolicy):
    """Let only so many calls run at once; the others queue, first come first served, or are rejected.

    One set of places serves all who share it: threads, event loops, sync and async callers alike.

    A short form: `bulkhead: 20` means `bulkhead: {max_concurrent: 20}`.

    Attributes:
        max_concurrent: calls that may run at once. Required.
        max_wait: how long a call may queue for a place before it raises `BulkheadFullError`; None: as long as it
            takes. Default 0: not at all.
        scope: "profile": all functions bound to one named profile share the places; "function": each has its own.
    """

    short: ClassVar[str | None] = "max_concurrent"
    kind: ClassVar[str] = "bulkhead"

    max_concurrent: PositiveCount
    max_wait: Duration | None = 0.0
    scope: Scope = "profile"

    if TYPE_CHECKING:  # what code may write is wider than what the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            max_concurrent: int,
            max_wait: DurationLike | None = 0.0,
            scope: Literal["profile", "function"] = "profile",
        ) -> None: ...
