"""The timeout policy: how long an attempt and a whole call may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from opero.policies.base import BasePolicy
from opero.policies.types import PositiveDuration, format_duration

if TYPE_CHECKING:
    from opero.policies.types import DurationLike

__all__ = ["TimeoutPolicy"]


class TimeoutPolicy(BasePolicy):
    """Limit the duration of an attempt, or of the whole call with its waits and retries; raise `CallTimeoutError`.

    An async function is cancelled. A sync function is interrupted in the main thread of a Unix process; elsewhere
    the caller gets the error on time, while the attempt continues in a thread of its own.

    A short form: `timeout: 5s` means `timeout: {total: 5s}`.

    Attributes:
        total: the maximum duration of a call with all its attempts and waits; a wait that cannot finish in time is
            not started. Default None.
        attempt: the maximum duration of one attempt. Default None.
    """

    short: ClassVar[str | None] = "total"
    kind: ClassVar[str] = "timeout"

    total: PositiveDuration | None = None
    attempt: PositiveDuration | None = None

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            total: DurationLike | None = None,
            attempt: DurationLike | None = None,
        ) -> None: ...

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.total is None and self.attempt is None:
            raise ValueError("no timeout is set; set total or attempt")
        if self.total is not None and self.attempt is not None and self.attempt > self.total:
            raise ValueError(
                f"attempt ({format_duration(self.attempt)}) is longer than total ({format_duration(self.total)}), "
                "so it has no effect; lower attempt or raise total"
            )
        return self
