"""Rounds of attempts: what is tried, how long is waited, and what a call that has failed comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opero.errors import (
    AllFailedError,
    CallTimeoutError,
    FailedResponseError,
    OperoError,
    RejectedError,
    ResultRejectedError,
    describe,
    shortened,
)
from opero.events import AttemptFailed, FallbackUsed, RetryScheduled
from opero.executors.backoff import NO_WAIT, Backoff, Progress, Schedule, Wait
from opero.executors.conditions import Matcher
from opero.executors.given_up import give_up, was_given_up
from opero.executors.responses import close_response
from opero.failures import status_of
from opero.policies.types import approximate_duration, format_duration
from opero.runtime.functions import is_async_function
from opero.runtime.hosts import AsyncHost, BlockingHost, Outcome
from opero.runtime.log import log, shows
from opero.runtime.tracebacks import detach, release, shorten

if TYPE_CHECKING:
    from types import TracebackType

    from opero.executors.call import Answers, Call
    from opero.executors.classifier import Classifier
    from opero.executors.fallback import Alternatives
    from opero.executors.one_shot import OneShotArguments
    from opero.executors.retry_budget import RetryBudget
    from opero.failures import Kind
    from opero.policies.retry import RetryPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host
    from opero.runtime.tracebacks import Place

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
Variant = tuple[Any, ...]
"""What an attempt is called with: `Args` and `Kwargs`, and what else its layer takes."""

AGAIN, NEVER, ROUND_OVER, FINAL = "again", "never", "round over", "final"
"""What follows from a failed attempt: its variant is tried again in the next round, or is not; all variants that are
left are tried in the next round; or the call has failed."""
RETRIES_WITHOUT_TURN = 2
"""Retries of a call that begin at once, if there is no delay, before others get a turn of the event loop between them:
a turn takes several times as long as a quick attempt."""

MOST_TEXT = 300
"""The most characters of the last exception that the message of all has."""
NOT_GIVEN_UP = RejectedError, FailedResponseError
"""Errors with which a call may end that calls around it judge by themselves."""


def counted(kinds: Sequence[Kind]) -> str:
    """Return the kinds of failures in words, such as "transient" or "2 transient, 1 denied"."""
    counts = Counter(kinds)
    return kinds[0] if len(counts) == 1 else ", ".join(f"{count} {kind}" for kind, count in counts.items())


class Rounds:
    """Runs the attempts of one function in rounds. It keeps no state between calls.

    A round calls the function once, or with each value of the fallback argument in turn.

    Args:
        policy: the retry policy.
        clock: the source of time and randomness.
        name: the function's name, for messages.
        classifier: says of which kind failures are.
        alternatives: makes the arguments for each value of the fallback argument; None if there is none.
        one_shot: warns of arguments that can be read only once. Default: there is no warning.
        why_once: called with the exception of a failed attempt and the arguments of the call: returns why it must not
            be repeated, or None. Default: it may be.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Clock,
        name: str,
        classifier: Classifier,
        alternatives: Alternatives | None = None,
        one_shot: OneShotArguments | None = None,
        why_once: Callable[..., str | None] | None = None,
    ) -> None:
        self.policy = policy
        self.why_once = why_once
        self.clock = clock
        self.name = name
        self.alternatives = alternatives
        self.one_shot = one_shot
        self.classifier = classifier
        self.kind_of = classifier.kind_of
        self.budget: RetryBudget | None = None
        self.is_by_value = False  # whether each fallback value has a circuit or limit of its own
        self.guards = policy.amplification == "guard"
        self.is_meant = Matcher.of(policy.retry_on, classifier)
        self.named_rejections = tuple(each for each in self.is_meant.classes if issubclass(each, RejectedError))
        self.named_own = tuple(each for each in self.is_meant.classes if issubclass(each, OperoError))
        self.retries = policy.retries
        self.awaits_judgement = is_async_function(policy.retry_if_result)
        self.backoff = Backoff(policy, clock, classifier)
        self.blocking = BlockingHost(clock)
        self.asynchronous = AsyncHost(clock)

    # Decisions

    def is_retryable(self, error: Exception, answers: Answers | None = None, kind: Kind | None = None) -> bool:
        """Return whether the policy retries after an exception.

        Args:
            error: the exception.
            answers: what async functions have said about it.
            kind: its kind, if that is known.
        """
        if isinstance(error, OperoError):
            if type(error) is ResultRejectedError:
                return True
            if isinstance(error, RejectedError):
                return isinstance(error, self.named_rejections)
            # An attempt that took too long is always worth another: its timeout is there for that.
            if isinstance(error, CallTimeoutError) and error.scope not in ("total", "deadline"):
                return True
        if self.guards and was_given_up(error) and not isinstance(error, self.named_own):
            return False
        statuses = self.policy.retry_on_status
        if statuses is not None:
            status = status_of(error)
            if status is not None:
                return status in statuses or f"{status // 100}xx" in statuses
        return self.is_meant(error, answers, kind)

    def rejected(self, result: Any) -> Outcome:
        """Return the outcome of an attempt whose result `retry_if_result` has rejected."""
        text = f"{self.name}: retry_if_result rejected the result, of type {type(result).__name__}"
        return Outcome(error=ResultRejectedError(text, result=result))

    def variants(self, args: Args, kwargs: Kwargs) -> list[Variant]:
        """Return the arguments of each attempt of the first round, in order."""
        return [(args, kwargs)] if self.alternatives is None else self.alternatives.variants(args, kwargs)

    def next_round(
        self, schedule: Schedule, failures: list[tuple[Variant, Exception]], rejection: bool
    ) -> tuple[Wait, list[Variant]]:
        """Return how long to wait for the next round, and its variants.

        Args:
            schedule: when each variant may be tried again.
            failures: the variants that failed or were not tried in this round, each with the exception.
            rejection: whether the last exception is a rejection that ended the round, so that all variants wait for it.
        """
        now, chance = self.clock.monotonic(), self.clock.random.random()
        wait: Wait | None = None
        for variant, error in failures:
            wait = self.backoff.after(error, schedule.progress[id(variant)], chance)
            schedule.failed(variant, wait, now)
        return schedule.next_round(now, wait if rejection else None)

    # The coroutines, which serve both sync and async callers

    async def rounds(
        self,
        host: Host,
        layer: Callable[..., Any],
        call: Call,
        variants: list[Variant],
        first: Outcome | None = None,
        later: Sequence[tuple[Variant, float]] = (),
    ) -> Outcome:
        """Run rounds of attempts until one succeeds or the policy gives up.

        A round makes one attempt in turn with each variant that need not wait any longer.

        Args:
            host: how the coroutine sleeps and calls.
            layer: the layer to call for an attempt.
            call: the call.
            variants: the arguments of each attempt of the first round.
            first: the outcome of the first attempt, if it has been made already.
            later: variants that must not be tried yet, each with the seconds to wait.
        """
        rejects = self.policy.retry_if_result
        schedule = Schedule(variants, self.policy.retries) if len(variants) > 1 or later else None
        for variant, seconds in later:
            schedule.hold(variant, seconds, self.clock.monotonic())  # type: ignore[union-attr]  # there is one then
        errors: list[Exception] = []
        places: list[Place | None] = []  # where earlier attempts failed
        detached: TracebackType | None = None
        failures: list[tuple[Variant, Exception]] = []
        progress: Any = Progress()
        wait = NO_WAIT
        outcome = first
        try:
            while True:
                failures = []
                rejection = False
                for position, variant in enumerate(variants):
                    if position:
                        await close_response(host, errors[-1])
                        call.stats.fallbacks += 1
                        call.stats.emit(FallbackUsed, what="value", error=errors[-1])
                        text = "%s: trying the next value of %s"
                        self.log("fallback_used", text, self.alternatives, call=call, what="value", error=errors[-1])
                    if outcome is None:
                        if errors:
                            detached = detach(errors[-1])
                            if self.one_shot is not None and (variant[0] or variant[1]):
                                self.one_shot.check(variant[0], variant[1])
                        if AttemptFailed.handlers:
                            call.tried, call.waited = perf_counter(), 0.0
                        outcome = await host.attempt(layer, call, *variant)
                    if rejects and (outcome.error is None or isinstance(outcome.error, FailedResponseError)):
                        result = outcome.value if outcome.error is None else outcome.error.result
                        answer = rejects(result)
                        if await answer if self.awaits_judgement else answer:
                            outcome = self.rejected(result)
                    if outcome.error is None:
                        if call.unsettled is not None:
                            await call.unsettled.settle(host, call, None)
                        return self.succeeded(outcome, call, errors)
                    if errors:  # not before: a success needs no place
                        places.append(release(errors[-1], detached))
                        detached = None
                    errors.append(outcome.error)
                    if schedule is not None:
                        schedule.kinds[id(variant)] = self.kind_of(outcome.error)
                    verdict = self.verdict(outcome.error, call)
                    if self.why_once is not None and verdict is AGAIN and self.is_unsafe(outcome.error, variant, call):
                        verdict = NEVER
                    ends_round = position + 1 == len(variants) or verdict in (FINAL, ROUND_OVER)
                    if ends_round and call.unsettled is not None:
                        await call.unsettled.settle(host, call, outcome.error)
                    if verdict is FINAL:
                        shorten(errors, places)
                        return self.given_up(self.final(outcome.error, errors))
                    if schedule is None:
                        if verdict is NEVER:
                            call.stats.retries_saved += self.retries + 1 - progress.attempt_number
                            return self.kept(call, outcome)
                        wait = self.backoff.after(outcome.error, progress)
                    elif verdict is NEVER:
                        schedule.drop(variant)
                    else:
                        rejection = verdict is ROUND_OVER
                        tried = variants[position : None if rejection else position + 1]
                        failures += [(each, outcome.error) for each in tried]
                    outcome = None
                    if rejection:
                        break
                if schedule is not None:
                    wait, variants = self.next_round(schedule, failures, rejection)
                delay, is_asked = wait
                spent = progress.attempt_number > self.retries if schedule is None else not variants
                if spent or (is_asked and delay > self.policy.max_delay):
                    shorten(errors, places)
                    call.fell_back |= type(errors[-1]) is ResultRejectedError
                    by_value = () if schedule is None else [*schedule.kinds.values()]
                    asked = delay if is_asked else None
                    return self.given_up(self.exhausted(call, errors, progress.attempt_number, asked, by_value))
                if call.deadline is not None and delay >= call.time_left(self.clock.monotonic()):
                    shorten(errors, places)
                    return self.given_up(self.out_of_time(call, delay, errors, delay if is_asked else None))
                if self.budget is not None and not await self.budget.allows(host, len(variants)):
                    shorten(errors, places)
                    by_value = () if schedule is None else [*schedule.kinds.values()]
                    return self.given_up(self.refused(self.budget, call, errors, progress.attempt_number, by_value))
                progress.attempt_number += 1
                if shows("retry_scheduled"):
                    self.log_retry(call, progress.attempt_number, len(errors), errors[-1], delay)
                call.stats.retries += 1
                if RetryScheduled.handlers:
                    values = {"attempt": progress.attempt_number, "delay": delay, "is_asked": is_asked}
                    call.stats.emit(RetryScheduled, **values, error=errors[-1])
                if isinstance(errors[-1], ResultRejectedError):  # most are not, and need no coroutine
                    await close_response(host, errors[-1])
                if delay > 0:
                    await host.sleep(delay)
                elif progress.attempt_number > 1 + RETRIES_WITHOUT_TURN:
                    await host.turn()
        finally:
            if call.unsettled is not None:
                call.unsettled.abandon(call)
            # The tracebacks of the exceptions refer to this frame: break the reference cycle.
            del errors, failures, first, outcome, detached

    def verdict(self, error: Exception, call: Call) -> str:
        """Return what follows from a failed attempt, and count it unless a layer has rejected the attempt."""
        if call.turned_away or isinstance(error, RejectedError):
            call.turned_away = False
            if isinstance(error, self.named_rejections):
                return ROUND_OVER
            return NEVER if self.is_by_value else FINAL  # else another value would be rejected as well
        failure = call.stats.count_error(error, self.classifier, call)
        kind = failure.kind
        if call.deadline is not None and call.time_left(self.clock.monotonic()) <= 0:
            return FINAL
        decide = self.is_meant if failure.is_bare else self.is_retryable
        if decide(error, call.answers, kind):
            return AGAIN
        return NEVER if self.alternatives is None or self.alternatives.is_meant(error, call.answers, kind) else FINAL

    def is_unsafe(self, error: Exception, variant: Variant, call: Call) -> bool:
        """Return whether the call must not be repeated, although the policy would, and log why."""
        assert self.why_once is not None
        reason = self.why_once(error, *variant[0], **variant[1])
        if reason is not None:
            self.log("retry_refused", "%s: no retry after %r: %s", error, reason, call=call, delay=None, error=error)
        return reason is not None

    def log(self, event: str, text: str, *args: Any, call: Call, **fields: Any) -> None:
        """Log a record of a call. Exceptions are not shown if they may contain a fallback value, which is secret."""
        hides = self.alternatives is not None
        log(event, text, self.name, *args, about=call.stats, hides=hides, clock=self.clock, **fields)

    def log_retry(self, call: Call, attempt: int, failed: int, error: Exception, delay: float) -> None:
        """Log that another round of attempts begins."""
        failure, text = self.classifier.failure_of(error), "%s: attempt %d failed with %r; next in %.3g s"
        fields: dict[str, Any] = {
            "attempt": attempt,
            "delay": delay,
            "kind": failure.kind,
            "status": failure.status,
            "error": error,
        }
        self.log("retry_scheduled", text, failed, error, delay, call=call, **fields)

    # Outcomes

    def succeeded(self, outcome: Outcome, call: Call, errors: list[Exception]) -> Outcome:
        """Return the outcome of a successful attempt, and count a recovery if others had failed."""
        if errors:
            call.stats.recoveries += 1
            if shows("call_recovered"):
                text = "%s: succeeded after %d failed attempts"
                self.log("call_recovered", text, len(errors), call=call, attempts=len(errors) + 1)
        return outcome

    def kept(self, call: Call, outcome: Outcome) -> Outcome:
        """Return the outcome of an attempt that no other follows: a result that was rejected is the call's result."""
        error = outcome.error
        if type(error) is not ResultRejectedError:
            return outcome
        call.fell_back = True
        return Outcome(error.result)

    def exhausted(
        self, call: Call, errors: list[Exception], rounds: int, retry_in: float | None, by_value: Sequence[Kind] = ()
    ) -> Outcome:
        """Return the outcome if no attempt is left: the last one for a single attempt or `reraise`, else all errors.

        Args:
            call: the call.
            errors: the exceptions of the attempts.
            rounds: the number of rounds.
            retry_in: the seconds that the last errors ask to wait; more than `max_delay` leaves no attempt.
            by_value: with several fallback values, the kind of the last failure of each.
        """
        last, asks = errors[-1], ""
        if retry_in is not None:
            asks = f"; it asks to wait {approximate_duration(retry_in)}"
            if retry_in > self.policy.max_delay:
                asks += f", longer than max_delay ({format_duration(self.policy.max_delay)})"
                self.log("retry_refused", "%s: no retry after %r%s", last, asks, call=call, delay=retry_in, error=last)
        if isinstance(last, FailedResponseError):
            return Outcome(error=last)
        if len(errors) == 1 or self.policy.reraise:
            if retry_in is not None and not isinstance(last, OperoError):
                with suppress(Exception):  # a class may have no room for it
                    last.retry_in = retry_in  # type: ignore[attr-defined]
            return Outcome(last.result) if isinstance(last, ResultRejectedError) else Outcome(error=last)
        kinds = tuple(map(self.kind_of, errors))
        said = counted(kinds)
        if by_value:
            said += f"; the values of {self.alternatives}, in the order tried: {', '.join(by_value)}"
        return Outcome(
            error=AllFailedError(
                f"{self.name}: all {len(errors)} attempts failed in {rounds} {'round' if rounds == 1 else 'rounds'} "
                f"({said}); last error: {shortened(describe(last), MOST_TEXT)}{asks}",
                tuple(errors),
                retry_in=retry_in,
                kinds=kinds,
            )
        )

    def refused(
        self, budget: RetryBudget, call: Call, errors: list[Exception], rounds: int, by_value: Sequence[Kind]
    ) -> Outcome:
        """Return the outcome if the retry budget allows no further round, and count that."""
        last = errors[-1]
        reason = f"not retried: {budget} is spent"
        self.log("retry_refused", "%s: no retry after %r: %s is spent", last, budget, call=call, error=last)
        call.stats.count_spent(last)
        with suppress(Exception):  # a class may have no room for it
            last.add_note(reason)
        call.fell_back |= type(last) is ResultRejectedError
        outcome = self.exhausted(call, errors, rounds, None, by_value)
        if isinstance(outcome.error, AllFailedError):
            outcome.error.add_note(reason)
        return outcome

    def given_up(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a call that has failed, marked as one that a call around it is not to retry."""
        if self.retries and outcome.error is not None and not isinstance(outcome.error, NOT_GIVEN_UP):
            give_up(outcome.error)
        return outcome

    def final(self, error: Exception, errors: list[Exception]) -> Outcome:
        """Return the outcome after a rejection or the total timeout, which are not retried."""
        earlier = errors[:-1]
        if earlier and error.__cause__ is None:
            error.__cause__ = earlier[-1]
        if isinstance(error, CallTimeoutError) and earlier:
            error.errors = tuple(earlier)
        return Outcome(error=error)

    def out_of_time(self, call: Call, delay: float, errors: list[Exception], retry_in: float | None) -> Outcome:
        """Return the outcome if the delay before the next round would exceed the total timeout."""
        left = max(0.0, call.time_left(self.clock.monotonic()))
        last = errors[-1]
        if isinstance(last, FailedResponseError):
            return Outcome(error=last)
        text = (
            f"{self.name}: the next attempt would start in {approximate_duration(delay)}, after {call.limit} in "
            f"{approximate_duration(left)}; failed attempts: {len(errors)}, last error: {describe(last)}"
        )
        return Outcome(error=call.out_of_time(text, "retry", errors=errors, retry_in=retry_in))
