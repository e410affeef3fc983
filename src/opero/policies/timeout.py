"""The timeout policy: how long an attempt, a whole call, and the wait for the next item of a stream may take."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from opero.policies.base import ShadowPolicy
from opero.policies.quantities import PositiveDuration, format_duration
from opero.policies.types import one_of

if TYPE_CHECKING:
    from opero.policies.quantities import DurationLike

Enforce = Annotated[Literal["interrupt", "wait", "none"], one_of(Literal["interrupt", "wait", "none"])]


class TimeoutPolicy(ShadowPolicy):
    """Limit the duration of an attempt, or of the whole call with its waits and retries; raise `CallTimeoutError`.

    An async function is cancelled. A sync function is interrupted in the main thread of a Unix process; elsewhere
    it runs in a thread of its own, and the caller gets the error on time while the attempt continues there. `enforce`
    says otherwise.

    A short form: `timeout: 5s` means `timeout: {total: 5s}`.

    Attributes:
        total: the maximum duration of a call with all its attempts and waits; a wait that cannot finish in time is
            not started. For a generator it ends with the first item. Default None.
        attempt: the maximum duration of one attempt; for a generator, until its first item. Default None.
        idle: the maximum wait for each item of a generator or async generator, the first one included. Other functions
            that are bound to a profile with it are not affected. Default None.
        enforce: what happens to an attempt that takes too long. "interrupt": it is cancelled or interrupted, or where
            that is impossible, left behind in its thread. "wait": it runs to its end, always in the thread of the
            caller, and a result that comes too late is replaced by the error; for functions that must not be
            interrupted, or whose objects belong to a thread, such as an SQLite connection. "none": it is not limited;
            `total` limits waits and retries only. Default "interrupt".
    """

    short: ClassVar[str | None] = "total"
    kind: ClassVar[str] = "timeout"

    total: PositiveDuration | None = None
    attempt: PositiveDuration | None = None
    idle: PositiveDuration | None = None
    enforce: Enforce = "interrupt"

    if TYPE_CHECKING:  # code may pass more types than the fields hold

        def __init__(
            self,
            *,
            enabled: bool = True,
            shadow: bool = False,
            total: DurationLike | None = None,
            attempt: DurationLike | None = None,
            idle: DurationLike | None = None,
            enforce: Literal["interrupt", "wait", "none"] = "interrupt",
        ) -> None: ...

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.total is None and self.attempt is None and self.idle is None:
            raise ValueError("no timeout is set; set total, attempt or idle")
        if self.total is not None and self.attempt is not None and self.attempt > self.total:
            raise ValueError(
                f"attempt ({format_duration(self.attempt)}) is longer than total ({format_duration(self.total)}), "
                "so it has no effect; lower attempt or raise total"
            )
        if self.enforce == "none":
            for field in ("attempt", "idle"):
                if getattr(self, field) is not None:
                    raise ValueError(
                        f"{field} has no effect with enforce: none, under which only total limits waits and retries; "
                        f"remove {field}, or use enforce: wait"
                    )
        return self
