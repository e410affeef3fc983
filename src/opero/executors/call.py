"""A call as it passes through the layers of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from opero.errors import CallTimeoutError
from opero.runtime.deadlines import current

if TYPE_CHECKING:
    from opero.cache.single_flight import Computation
    from opero.executors.state.budgets import Booking
    from opero.executors.state.circuit import Counted
    from opero.executors.state.slots import QueuedCall
    from opero.observe.receipts import CallReceipt
    from opero.observe.stats import Stats
    from opero.runtime.deadlines import Deadline
    from opero.runtime.hosts import Host

Answers = Mapping[Callable[..., Any], bool]
MISS: Any = object()
"""Returned by a memory cache that has no fresh entry for a key."""


class Call:
    """The state of one call, which its layers share.

    Attributes:
        stats: the statistics of the called function.
        deadline: the time at which the total timeout ends the call, or the deadline that it has inherited, by the
            clock's `monotonic`; None if there is neither.
        inherited: the deadline of the code that made the call, if it comes before that of the total timeout; else None.
        began: when the call began, by `time.perf_counter`, if it is timed.
        started: the same until the call has been reported to have failed; else 0.
        weight: the number of calls that it stands for in the statistics; 0 if it is not timed.
        tried: when the current attempt began, by the same, if it is known; else 0.
        receipt: what is recorded of it; None if nothing is.
        observed: who sees it begin and end, each with what its `begin` has returned.
        reached: when the current attempt got its permit and slot, by the clock's `monotonic`, where it may be hedged.
        hedge: if it is an attempt beside others, of which the first result counts: its number among them, from 2. Such
            a one waits for no permit and no slot. Else 0.
        waited: seconds that the current attempt has waited for a permit or a slot.
        turned_away: whether a layer has rejected the current attempt, so that its error is not the function's.
        counted: how the circuit breaker has counted the call so far.
        slot: the process in which it has a slot of the bulkhead (`SlotHolder`); None if it has none.
        queued: its position in the queue for one; None if it has none.
        permits: what it has taken from several limits, or as an estimate, until its function begins; else None.
        probe: the period of a half-open circuit in which it is a probe that has no result yet; else negative.
        chosen: the hash of the fallback value with which it is in flight; None if that is not counted.
        limiter: the rate limit that the current attempt has passed, if it is one of several, by key.
        computation: what it computes for the cache, whether that has ended or not; None if it has computed nothing.
        unsettled: what the circuit breaker has seen of the current round, which it counts when the round ends.
        counted_by: the circuit breaker that has counted it, or an attempt of it has failed with, if there is one for
            each key; else None.
        counted_before: how others of them have counted it; None if they have not.
        is_cut_short: whether a fallback has answered it for the deadline that it has inherited.
        fell_back: whether the result is a fallback result, or another that is not to be cached.
        is_fallback: whether a fallback answered instead of a failure.
        answers: what the user's async functions have said about the failure of the current attempt; None if there are
            none.
        ttl: the seconds for which an async function of the user's has said to cache the outcome; None without one.
    """

    stats: Stats
    deadline: float | None = None
    inherited: Deadline | None = None
    began: float = 0.0
    started: float = 0.0
    weight: int = 0
    tried: float = 0.0
    receipt: CallReceipt | None = None
    observed: tuple[tuple[Any, Any], ...] = ()
    reached: float = 0.0
    hedge: int = 0
    waited: float = 0.0
    turned_away: bool = False
    fell_back: bool = False
    is_fallback: bool = False
    is_cut_short: bool = False
    answers: Answers | None = None
    ttl: float | None = None
    counted: Counted | None = None
    slot: int | None = None
    queued: QueuedCall | None = None
    permits: Booking | None = None
    probe: int = -1
    chosen: str | None = None
    limiter: Any = None
    computation: Computation | None = None
    unsettled: UnsettledRound | None = None
    counted_by: Any = None
    counted_before: dict[Any, Counted] | None = None

    # What a call holds is noted here in the moment in which it is taken, not when the layer hears of that: in between,
    # Ctrl-C may interrupt the call. See `abandon`.

    # There is no `__init__`, so that creating a call runs no Python code; `stats` is set afterwards.

    @classmethod
    def of(cls, stats: Stats) -> Call:
        """Return a call that counts in `stats`."""
        call = cls()
        call.stats = stats
        return call

    def time_left(self, now: float) -> float:
        """Return the seconds until the deadline; infinity if there is none."""
        return float("inf") if self.deadline is None else self.deadline - now

    def inherit(self, monotonic: Callable[[], float]) -> None:
        """Take on the deadline of the code that makes the call.

        Args:
            monotonic: that of the function's clock.
        """
        deadline = current.get()
        if deadline is not None:
            self.inherited, self.deadline = deadline, deadline.by(monotonic)

    def check_time(self) -> None:
        """Raise an error if the inherited deadline has passed: the call begins no attempt, and waits for nothing."""
        if self.inherited is not None and self.inherited.left() <= 0:
            name = self.stats.function.rpartition(":")[2]
            raise self.out_of_time(f"{name}: not begun, as {self.limit} has passed")

    def out_of_time(self, message: str, waiting_for: str = "attempt", **values: Any) -> CallTimeoutError:
        """Return the error for a call that has no time to go on, and count it."""
        self.turned_away = True
        error = CallTimeoutError(message, scope=self.scope, waiting_for=waiting_for, **values)
        return self.stats.count_timeout(error)

    @property
    def scope(self) -> str:
        """What `deadline` comes from, as `CallTimeoutError.scope` says it."""
        return "total" if self.inherited is None else "deadline"

    @property
    def limit(self) -> str:
        """The same in words."""
        return "the total timeout" if self.inherited is None else "the deadline of its caller"


def abandon(call: Call, executors: Mapping[str, Any]) -> None:
    """Give back what a call still holds that has ended by something other than an `Exception`.

    Layers give back what they have taken. But Ctrl-C can interrupt a layer when it has just taken something, or is
    about to give it back. So where a call ends, everything is looked after once more. What has been given back already
    is left alone, and so is what others wait for.
    """
    for each in executors.values():
        give_back = getattr(each, "abandon", None)
        if give_back is not None:
            give_back(call)


class UnsettledRound(Protocol):
    """A round of attempts that the circuit breaker counts when it ends.

    Only the layer that runs the round knows when that is, and whether it accepts a result. A round counts once: as a
    success if any of its attempts succeeds, as a failure if all of them fail.

    Attributes:
        period: the period of the circuit in which the latest attempt was let through.
        ignored: whether an attempt was rejected or failed with an ignored error, so that a failed round says nothing.
        trouble: the last failure in one line, if it may have to be counted before the round ends.
    """

    period: int
    ignored: bool
    trouble: str

    async def settle(self, host: Host, call: Call, error: Exception | None) -> None:
        """Count the round: as a failure if there is an error, else as a success."""

    def fail(self, call: Call) -> None:
        """Count the attempts so far as a failure: those that follow are of another circuit."""

    def abandon(self, call: Call) -> None:
        """Count nothing: the round has ended without a result, for example by cancellation."""


class Layer(Protocol):
    """A layer of a pipeline: called with the call and its arguments, it returns the result.

    For an async function it returns an awaitable immediately.
    """

    def __call__(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any], /) -> Any: ...
