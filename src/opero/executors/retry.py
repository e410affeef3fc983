"""Retries: rounds of attempts, the delays between them, and the error after the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, stop_after_attempt, wait_exponential

from opero.errors import AllFailedError, CallTimeoutError, RejectedError, ResultRejectedError, describe
from opero.executors.http_errors import retry_after, status_of
from opero.observe.logs import logger
from opero.policies.types import approximate_duration
from opero.runtime.hosts import AsyncHost, BlockingHost, Outcome, run_blocking

if TYPE_CHECKING:
    import random

    from opero.executors.call import Call, Layer
    from opero.executors.fallback import Alternatives
    from opero.policies.retry import RetryPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

__all__ = ["RetryExecutor", "backoff"]

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
Variant = tuple[Args, Kwargs]


def backoff(base: float, policy: RetryPolicy, random: random.Random) -> float:
    """Return the delay for an exponential delay of `base` seconds, with jitter if the policy says so.

    With jitter it is uniform over an interval of length `base / 2` that begins at `base`, or earlier so that it ends at
    `max_delay`.
    """
    if not policy.jitter:
        return base
    upper = min(base * 1.5, policy.max_delay)
    lower = max(upper - base / 2, policy.min_delay)
    return random.uniform(lower, upper)


class RetryExecutor:
    """Runs the attempts of one function in rounds. It keeps no state between calls.

    A round calls the function once, or with each value of the fallback argument in turn.

    Args:
        policy: the retry policy.
        clock: the source of time and randomness.
        name: the function's name, for messages.
        alternatives: makes the arguments for each value of the fallback argument; None if there is none.
    """

    def __init__(self, policy: RetryPolicy, clock: Clock, name: str, alternatives: Alternatives | None = None) -> None:
        self.policy = policy
        self.clock = clock
        self.name = name
        self.alternatives = alternatives
        self.named_rejections = tuple(each for each in policy.retry_on if issubclass(each, RejectedError))
        self.stop = stop_after_attempt(policy.retries + 1)
        self.wait = wait_exponential(
            multiplier=policy.min_delay, exp_base=policy.backoff_factor, min=policy.min_delay, max=policy.max_delay
        )
        self.blocking = BlockingHost(clock)
        self.asynchronous = AsyncHost(clock)

    # Decisions

    def is_retryable(self, error: BaseException) -> bool:
        """Return whether the policy retries after an exception."""
        if isinstance(error, ResultRejectedError):
            return True
        if isinstance(error, RejectedError):
            return isinstance(error, self.named_rejections)
        statuses = self.policy.retry_on_status
        if statuses is not None and isinstance(error, Exception):
            status = status_of(error)
            if status is not None:
                return status in statuses or f"{status // 100}xx" in statuses
        return isinstance(error, self.policy.retry_on)

    def judge(self, outcome: Outcome) -> Outcome:
        """Return the outcome, or a failed one instead if `retry_if_result` rejects the result."""
        rejects = self.policy.retry_if_result
        if outcome.error is None and rejects is not None and rejects(outcome.value):
            return Outcome(
                error=ResultRejectedError(
                    f"{self.name}: retry_if_result rejected {outcome.value!r:.200}", result=outcome.value
                )
            )
        return outcome

    def variants(self, args: Args, kwargs: Kwargs) -> list[Variant]:
        """Return the arguments of each attempt of the first round, in order."""
        return [(args, kwargs)] if self.alternatives is None else self.alternatives.variants(args, kwargs)

    def delay_after(self, state: RetryCallState, errors: list[Exception]) -> float:
        """Return the seconds until the next round: the backoff, or longer if an error asks for it."""
        delay = backoff(self.wait(state), self.policy, self.clock.random)
        for error in errors:
            if isinstance(error, RejectedError):
                requested = error.retry_in
            else:
                requested = retry_after(error, self.clock.time()) if self.policy.retry_after else None
            if requested is not None and requested > delay:
                delay = min(requested, self.policy.max_delay)
        return delay

    # The coroutines, which serve both sync and async callers

    async def rounds(
        self, host: Host, layer: Layer, call: Call, variants: list[Variant], first: Outcome | None = None
    ) -> Outcome:
        """Run rounds of attempts until one succeeds or the policy gives up.

        Args:
            host: how the coroutine sleeps and calls.
            layer: the layer to call for an attempt.
            call: the call.
            variants: the arguments of each attempt of the first round.
            first: the outcome of the first attempt, if it has been made already.
        """
        several = len(variants) > 1
        errors: list[Exception] = []
        failures: list[Exception] = []
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # only tenacity's strategies are used
        try:
            while True:
                result = await self.round(host, layer, call, variants, first, errors, several=several)
                first = None
                if isinstance(result, Outcome):
                    return result
                variants, failures = result
                if not variants or self.stop(state):
                    return self.exhausted(errors, state.attempt_number)
                delay = self.delay_after(state, failures)
                if call.deadline is not None and delay >= call.time_left(self.clock.monotonic()):
                    return self.out_of_time(call, delay, errors)
                logger.debug("%s: attempt %d failed with %r; next in %.3g s", self.name, len(errors), errors[-1], delay)
                state.prepare_for_next_attempt()
                call.stats.retries += 1
                if delay > 0:
                    await host.sleep(delay)
        finally:
            # The tracebacks of the exceptions refer to this frame: break the reference cycle.
            del errors, failures, first
            result = None  # type: ignore[assignment]

    async def round(
        self,
        host: Host,
        layer: Layer,
        call: Call,
        variants: list[Variant],
        first: Outcome | None,
        errors: list[Exception],
        *,
        several: bool,
    ) -> Outcome | tuple[list[Variant], list[Exception]]:
        """Run one attempt with each variant in turn.

        Args:
            host: how the coroutine sleeps and calls.
            layer: the layer to call for an attempt.
            call: the call.
            variants: the arguments of each attempt.
            first: the outcome of the first attempt, if it has been made already.
            errors: the exceptions of all attempts so far, to which those of this round are added.
            several: whether the call has more than one variant.

        Returns:
            The outcome of the call if it is final; otherwise the variants to retry, and their exceptions.
        """
        again: list[Variant] = []
        failures: list[Exception] = []
        outcome: Outcome | None = None
        try:
            for position, variant in enumerate(variants):
                if position:
                    call.stats.fallbacks += 1
                    logger.info("%s: trying the next value of %s", self.name, self.alternatives)
                outcome = first or self.judge(await host.attempt(layer, call, *variant))
                first = None
                if outcome.error is None:
                    return self.succeeded(outcome, call, errors)
                errors.append(outcome.error)
                if call.turned_away or isinstance(outcome.error, RejectedError):
                    call.turned_away = False
                    if not isinstance(outcome.error, self.named_rejections):
                        return self.final(outcome.error, errors)
                    return [*again, *variants[position:]], [*failures, outcome.error]
                call.stats.count_error(outcome.error)
                if call.deadline is not None and call.time_left(self.clock.monotonic()) <= 0:
                    return self.final(outcome.error, errors)
                if self.is_retryable(outcome.error):
                    again.append(variant)
                    failures.append(outcome.error)
                elif not several:
                    return outcome
            return again, failures
        finally:
            del errors, failures, outcome, first

    # Outcomes

    def succeeded(self, outcome: Outcome, call: Call, errors: list[Exception]) -> Outcome:
        """Return the outcome of a successful attempt, and count a recovery if others had failed."""
        if errors:
            call.stats.recoveries += 1
            logger.info("%s: succeeded after %d failed attempts", self.name, len(errors))
        return outcome

    def exhausted(self, errors: list[Exception], rounds: int) -> Outcome:
        """Return the outcome if no attempt is left: the last one for a single attempt or `reraise`, else all errors."""
        last = errors[-1]
        if len(errors) == 1 or self.policy.reraise:
            return Outcome(last.result) if isinstance(last, ResultRejectedError) else Outcome(error=last)
        return Outcome(
            error=AllFailedError(
                f"{self.name}: all {len(errors)} attempts failed in {rounds} {'round' if rounds == 1 else 'rounds'}; "
                f"last error: {describe(last)}",
                tuple(errors),
            )
        )

    def final(self, error: Exception, errors: list[Exception]) -> Outcome:
        """Return the outcome after a rejection or the total timeout, which are not retried."""
        earlier = errors[:-1]
        if earlier and error.__cause__ is None:
            error.__cause__ = earlier[-1]
        if isinstance(error, CallTimeoutError) and earlier:
            error.errors = tuple(earlier)
        return Outcome(error=error)

    def out_of_time(self, call: Call, delay: float, errors: list[Exception]) -> Outcome:
        """Return the outcome if the delay before the next round would exceed the total timeout."""
        left = max(0.0, call.time_left(self.clock.monotonic()))
        last = errors[-1]
        error = CallTimeoutError(
            f"{self.name}: the next attempt would start in {approximate_duration(delay)}, after the total timeout in "
            f"{approximate_duration(left)}; failed attempts: {len(errors)}, last error: {describe(last)}",
            scope="total",
            errors=errors,
        )
        error.__cause__ = last
        call.stats.timeouts += 1
        return Outcome(error=error)

    # The layer

    @property
    def prepares(self) -> bool:
        """Whether this layer has work to do even if the first attempt succeeds."""
        return self.alternatives is not None or self.policy.retry_if_result is not None

    def recover(self, layer: Layer, call: Call, args: Args, kwargs: Kwargs, error: Exception) -> Any:
        """Continue after a failed first attempt."""
        rounds = self.rounds(self.blocking, layer, call, [(args, kwargs)], Outcome(error=error))
        del error
        return run_blocking(rounds).get()

    async def recover_async(self, layer: Layer, call: Call, args: Args, kwargs: Kwargs, error: Exception) -> Any:
        """Continue after a failed first attempt of an async function."""
        rounds = self.rounds(self.asynchronous, layer, call, [(args, kwargs)], Outcome(error=error))
        del error
        return (await rounds).get()

    def wrap(self, layer: Layer) -> Layer:
        def in_rounds(call: Call, args: Args, kwargs: Kwargs) -> Any:
            return run_blocking(self.rounds(self.blocking, layer, call, self.variants(args, kwargs))).get()

        def retried(call: Call, args: Args, kwargs: Kwargs) -> Any:
            try:
                return layer(call, args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in recover
                return self.recover(layer, call, args, kwargs, error)

        return in_rounds if self.prepares else retried

    def wrap_async(self, layer: Layer) -> Layer:
        async def in_rounds(call: Call, args: Args, kwargs: Kwargs) -> Any:
            return (await self.rounds(self.asynchronous, layer, call, self.variants(args, kwargs))).get()

        async def retried(call: Call, args: Args, kwargs: Kwargs) -> Any:
            try:
                return await layer(call, args, kwargs)
            except Exception as error:  # noqa: BLE001  # decided in recover_async
                return await self.recover_async(layer, call, args, kwargs, error)

        return in_rounds if self.prepares else retried
