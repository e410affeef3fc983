"""Hedging: another attempt beside one that takes long. The first result counts, and the other attempt is cancelled.

Each attempt has a `Call` of its own, as both hold permits, slots and periods of the circuit at the same time. What an
attempt has taken is given back by the layers within, when it ends or is cancelled; of a sync function that is left
behind in its thread, when it ends there. For the circuit breaker a hedge that ends counts as a call of its own, and an
attempt that is cancelled does not count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opero.errors import CallTimeoutError, RejectedError
from opero.events import HedgeStarted
from opero.executors.call import Call, abandon
from opero.executors.one_shot import may_be_half_read
from opero.executors.responses import close_response, close_result
from opero.executors.state.hedging import HedgeBudget, RecentLatency
from opero.runtime.hosts import AsyncHost, BlockingHost, Outcome, run_blocking
from opero.runtime.side_by_side import Run, runs_of

if TYPE_CHECKING:
    from opero.executors.call import Layer
    from opero.executors.classifier import Classifier
    from opero.policies.hedge import HedgePolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host
    from opero.runtime.side_by_side import Runs

ROUNDING = 1e-6
"""Seconds by which a moment may seem not to have come as numbers are rounded."""
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


class HedgeExecutor:
    """Hedges the attempts of one function.

    Args:
        policy: the hedge policy.
        clock: the source of time.
        stats: the counts of the function's calls.
        classifier: says of which kind failures are.
        executors: those of the pipeline.
        why_alone: called with the arguments of a call: returns why no attempt may run beside another; None if one may.
    """

    def __init__(
        self,
        policy: HedgePolicy,
        clock: Clock,
        stats: Any,
        classifier: Classifier | None,
        executors: Mapping[str, Any],
        why_alone: Callable[..., str | None] | None = None,
    ) -> None:
        self.policy = policy
        self.clock = clock
        self.classifier = classifier
        self.executors = executors
        self.why_alone = why_alone
        self.budget = HedgeBudget(stats, policy.budget)
        self.recent = RecentLatency(policy.after)

    def migrate_from(self, old: HedgeExecutor) -> None:
        """Continue with the measurements and the budget of the executor that this one replaces."""
        self.budget, self.recent = old.budget, old.recent
        self.budget.share = self.policy.budget
        self.recent.watch(self.policy.after)

    # Decisions

    def delay(self) -> float | None:
        """Return the seconds after which an attempt is hedged; None while that is not known."""
        after = self.policy.after
        return self.recent.delay if isinstance(after, str) else after

    def may_begin(self, call: Call, args: Args, kwargs: Kwargs) -> bool:
        """Return whether another attempt may begin now, and take it from the budget if so."""
        if call.time_left(self.clock.monotonic()) <= 0:
            return False
        breaker = self.executors.get("circuit_breaker")
        if breaker is not None and not breaker.is_closed_for(args, kwargs):
            return False
        if self.why_alone is not None and self.why_alone(*args, **kwargs) is not None:
            return False
        if any(inspect.isgenerator(each) or may_be_half_read(each) for each in (*args, *kwargs.values())):
            return False  # both attempts would read it
        return self.budget.take()

    # Around the function

    def mark(self, layer: Layer) -> Layer:
        """Return the layer within all limits, which notes when an attempt has passed them."""
        monotonic = self.clock.monotonic

        def marked(call: Call, args: Args, kwargs: Kwargs) -> Any:
            call.reached = monotonic()
            if call.hedge:
                call.stats.hedges += 1
                call.stats.emit(HedgeStarted, attempt=call.hedge, delay=self.delay())
            return layer(call, args, kwargs)

        return marked

    def wrap(self, layer: Layer) -> Layer:
        """Return the layer that hedges attempts."""
        host = BlockingHost(self.clock)

        def attempt(run: _Attempt, args: Args, kwargs: Kwargs) -> Any:
            try:
                return layer(run.call, args, kwargs)
            except BaseException as error:
                if not isinstance(error, Exception):
                    abandon(run.call, self.executors)
                raise
            finally:
                run.leave()

        def hedged(call: Call, args: Args, kwargs: Kwargs) -> Any:
            delay = self.delay()
            if delay is None:
                return self.measured(call, layer(call, args, kwargs))
            return run_blocking(_Race(self, host, call, args, kwargs).run(attempt, delay)).get()

        return hedged

    def wrap_async(self, layer: Layer) -> Layer:
        """Return the layer that hedges attempts of an async function."""
        host = AsyncHost(self.clock)

        async def attempt(run: _Attempt, args: Args, kwargs: Kwargs) -> Any:
            try:
                return await layer(run.call, args, kwargs)
            except BaseException as error:
                if not isinstance(error, Exception):
                    abandon(run.call, self.executors)
                raise
            finally:
                run.leave()

        async def hedged(call: Call, args: Args, kwargs: Kwargs) -> Any:
            delay = self.delay()
            if delay is None:
                return self.measured(call, await layer(call, args, kwargs))
            return (await _Race(self, host, call, args, kwargs).run(attempt, delay)).get()

        return hedged

    def measured(self, call: Call, result: Any) -> Any:
        """Add the duration of an attempt that has just succeeded, and return its result."""
        self.recent.add(self.clock.monotonic() - call.reached)
        return result


class _Attempt:
    """One of the attempts of a race.

    Attributes:
        call: what it holds and counts.
        run: how it runs; None if it could not begin.
        is_late: whether the race is over.
        seen: whether its failure has been looked at.
    """

    __slots__ = ("call", "is_late", "run", "seen")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.run: Run | None = None
        self.is_late = self.seen = False

    def leave(self) -> None:
        """The attempt has ended: if its call is over, its result counts for nothing."""
        if self.is_late:
            self.forgo_round()

    def forgo_round(self) -> None:
        """Count nothing in the round of its call."""
        unsettled = self.call.unsettled
        if unsettled is not None:
            unsettled.abandon(self.call)

    @property
    def error(self) -> Exception | None:
        """What it has failed with."""
        outcome = None if self.run is None else self.run.outcome
        return None if outcome is None else outcome.error

    @property
    def has_result(self) -> bool:
        """Whether it has succeeded."""
        outcome = None if self.run is None else self.run.outcome
        return outcome is not None and outcome.error is None


class _Race:
    """The attempts of a call of which the first result counts."""

    def __init__(self, hedge: HedgeExecutor, host: Host, call: Call, args: Args, kwargs: Kwargs) -> None:
        self.hedge = hedge
        self.host = host
        self.call = call
        self.arguments = args, kwargs
        self.attempts: list[_Attempt] = []
        self.left = hedge.policy.max

    async def run(self, attempt: Callable[..., Any], delay: float) -> Outcome:
        """Return the first result; if all attempts fail, the exception of the first one."""
        broken = winner = None
        try:
            async with runs_of(self.host) as runs:
                if not self.begin(runs, attempt):  # too many threads: the attempt runs in this one, alone
                    first = self.attempts[0]
                    first.run = Run.of(await self.host.attempt(attempt, first, *self.arguments))
                try:
                    while broken is None and winner is None and self.is_running():
                        await runs.wait(self.until_next(delay))
                        broken = next((each.run.error for each in self.attempts if each.run and each.run.error), None)
                        winner = next((each for each in self.attempts if each.has_result), None)
                        self.look()
                        if winner is None and broken is None and self.is_due(delay):
                            self.left = self.left - 1 if self.may_begin() and self.begin(runs, attempt) else 0
                finally:
                    for each in self.attempts:
                        each.is_late = True
            if broken is not None:
                raise broken
        except BaseException:
            self.give_up()
            raise
        finally:
            del broken
        return await self.settled(winner)

    def give_up(self) -> None:
        """Give back what attempts have that will not do so: of a task that was cancelled before its first step."""
        for each in self.attempts:
            if each.run is not None and (each.run.ended or not isinstance(self.host, BlockingHost)):
                each.forgo_round()
                abandon(each.call, self.hedge.executors)
            each.run = None  # a traceback refers to the attempt: break the reference cycle

    # Decisions

    def is_running(self) -> bool:
        """Return whether an attempt may still give a result."""
        return any(each.run is not None and not each.run.ended for each in self.attempts)

    def until_next(self, delay: float) -> float | None:
        """Return the seconds until another attempt may be due; None if there is none."""
        if not self.left:
            return None
        latest, now = self.attempts[-1].call, self.hedge.clock.monotonic()
        return max(0.0, (latest.reached or now) + delay - now)  # one that waits for a permit is looked at again

    def is_due(self, delay: float) -> bool:
        """Return whether another attempt is due: the latest one runs, not only waits, for that long."""
        if not self.left or not self.is_running():
            return False
        reached = self.attempts[-1].call.reached
        return reached > 0 and self.hedge.clock.monotonic() >= reached + delay - ROUNDING

    def may_begin(self) -> bool:
        """As `HedgeExecutor.may_begin`."""
        return self.hedge.may_begin(self.call, *self.arguments)

    def begin(self, runs: Runs, attempt: Callable[..., Any]) -> bool:
        """Begin an attempt; return False if there is no thread for it."""
        own, call = Call.of(self.call.stats), self.call
        own.deadline, own.inherited, own.receipt = call.deadline, call.inherited, call.receipt
        if self.attempts:
            own.hedge = len(self.attempts) + 1
            own.tried = perf_counter() if call.tried else 0.0
        else:
            own.tried, own.waited, own.counted = call.tried, call.waited, call.counted
            own.probe, own.unsettled = call.probe, call.unsettled
            call.probe, call.unsettled = -1, None
            own.counted_by, own.counted_before = call.counted_by, call.counted_before
        new = _Attempt(own)
        try:
            self.attempts.append(new)
            new.run = runs.begin(attempt, new, *self.arguments)
        except RejectedError:
            if own.hedge:
                self.hedge.budget.give_back()
            return False
        return True

    def look(self) -> None:
        """Begin no more attempts after a failure. Give back to the budget what a hedge has taken that was refused."""
        for each in self.attempts:
            if each.error is not None and not each.seen:
                each.seen, self.left = True, 0
                if each.call.hedge and not each.call.reached:
                    self.hedge.budget.give_back()

    # The end

    async def settled(self, winner: _Attempt | None) -> Outcome:
        """Return the outcome of the call, once the counts of all attempts are settled."""
        first, now = self.attempts[0], self.hedge.clock.monotonic()
        chosen = winner or first
        if first.call.reached and (first.error is None or isinstance(first.error, CallTimeoutError)):
            self.hedge.recent.add(now - first.call.reached)  # at least: it may have been cancelled
        for each in self.attempts:
            if each is not chosen:
                each.forgo_round()
                await self.supersede(each)
        call, own = self.call, chosen.call
        call.counted, call.unsettled, call.probe = own.counted, own.unsettled, own.probe
        call.counted_by, call.counted_before = own.counted_by, own.counted_before
        call.turned_away, call.answers, call.waited = own.turned_away, own.answers, own.waited
        if chosen is not first:
            call.stats.hedge_wins += 1
        run = chosen.run
        for each in self.attempts:  # the traceback of an exception refers to its attempt: break the reference cycle
            each.run = None
        assert run is not None
        assert run.outcome is not None
        run.keep_context()
        return run.outcome

    async def supersede(self, attempt: _Attempt) -> None:
        """Count the error of an attempt that does not answer the call, and close its response."""
        error = attempt.error
        if error is None:
            if attempt.has_result and attempt.run is not None and attempt.run.outcome is not None:
                await close_result(self.host, attempt.run.outcome.value)
        elif attempt.call.reached:
            if not attempt.call.turned_away and not isinstance(error, RejectedError):
                self.call.stats.count_error(error, self.hedge.classifier, attempt.call)
            await close_response(self.host, error)
