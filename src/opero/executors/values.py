"""Rounds of attempts over the values of a fallback argument, which have a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opero.errors import RateLimitExceededError
from opero.events import Waited
from opero.executors.retry import RetryExecutor
from opero.executors.state import values as state
from opero.executors.state.home import Moved
from opero.executors.value_memory import Tries
from opero.failures import Kind
from opero.policies.retry import THROTTLED_DELAY
from opero.policies.types import approximate_duration, format_duration
from opero.runtime.generators import Started
from opero.runtime.hosts import Outcome, run_blocking
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.executors.call import Call, Layer
    from opero.executors.classifier import Classifier
    from opero.executors.fallback import Alternatives
    from opero.executors.one_shot import OneShotArguments
    from opero.executors.rounds import Args, Kwargs, Variant
    from opero.executors.state.values import Id, Plan, Rules
    from opero.executors.state.values_home import ValuesHome
    from opero.executors.value_memory import ValueMemory
    from opero.policies.retry import RetryPolicy
    from opero.runtime.clock import Clock
    from opero.runtime.hosts import Host

    Values = Sequence[Any]


class Steady:
    """Which values the calls of a function may begin with, as long as nothing changes.

    Attributes:
        values: the values of these calls.
        ids: their hashes.
        positions: the values among which a call chooses.
        home, version: the memory, and its version, for which this holds.
        until: the time until which it holds.
        is_timed: whether there is such a time.
        sums: with weights, their sums up to each of the positions.
    """

    __slots__ = ("home", "ids", "is_timed", "positions", "sums", "until", "values", "version")

    def __init__(self, values: Values, ids: list[Id], plan: Plan, rules: Rules, home: ValuesHome) -> None:
        self.values = values[:]  # the caller may change its list
        self.ids = ids
        self.positions = plan.steady
        self.version = plan.version
        self.home = home
        self.until = plan.until
        self.is_timed = plan.until != state.FOREVER
        self.sums = state.cumulated(plan.steady, rules.weights) if rules.order == "weighted" else []


class ValuesRetryExecutor(RetryExecutor):
    """Runs the attempts of one function in rounds over the values of its fallback argument, which have a memory.

    Args:
        policy, clock, name, classifier, alternatives, one_shot: as for `RetryExecutor`.
        memory: what is remembered of the values.
    """

    alternatives: Alternatives

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Clock,
        name: str,
        classifier: Classifier,
        alternatives: Alternatives,
        memory: ValueMemory,
        one_shot: OneShotArguments | None = None,
    ) -> None:
        super().__init__(policy, clock, name, classifier, alternatives, one_shot)
        self.memory = memory
        self.steady: Steady | None = None
        self.is_in_order = memory.rules.order == "in_order"
        self.counts = memory.rules.order == "least_loaded"
        self.judges = policy.retry_if_result is not None

    # The path of a success

    def pick(self, values: Values, call: Call | None = None) -> int:
        """Return the position of the value to begin with; -1 if more has to be known of the values."""
        steady, home = self.steady, self.memory.home
        if steady is None or steady.version != home.version or steady.home is not home:
            return -1
        try:
            if steady.values != values:
                return -1
        except Exception:  # noqa: BLE001  # such as arrays, which do not compare as a whole
            return -1
        if steady.is_timed and self.clock.monotonic() >= steady.until:
            return -1
        positions = steady.positions
        if self.is_in_order:
            return positions[0]
        if home.blocks:
            return -1
        try:
            if self.counts:
                return home.take(steady.ids, positions, call)
            turn = home.next_turn()
        except Moved:
            return -1
        if steady.sums:
            return state.pick_weighted(positions, steady.sums, turn)
        return positions[turn % len(positions)]

    def left(self, call: Call, values: Values | None, position: int, result: Any = None) -> None:
        """Record that the first attempt with a value that `pick` has chosen has ended."""
        if not self.counts or values is None or len(values) == 1:
            return
        value = self.memory.ids((values[position],))[0]
        if type(result) is Started:
            result.on_end(lambda _: self.memory.give_back(value, call))  # a generator has its value until it ends
        else:
            self.memory.give_back(value, call)

    def first(self, call: Call, args: Args, kwargs: Kwargs) -> tuple[Values | None, int, Variant]:
        """Return the values of a call, the position of the one to begin with, and the arguments with it.

        The position is -1 if more has to be known of the values.
        """
        values = self.alternatives.given(args, kwargs)
        if values is None:
            return None, 0, (args, kwargs)
        position = self.pick(values, call) if len(values) > 1 else 0
        return values, position, self.alternatives.variant(values, position, args, kwargs)

    def wrap(
        self,
        layer: Layer,
        function: Callable[..., Any] | None = None,
        check_response: Callable[[Any], None] | None = None,
    ) -> Layer:
        """Return the layer that retries. It makes the first attempt itself if it is known which value works."""
        first, counts, is_ready = self.first, self.counts, not self.judges

        def in_rounds(call: Call, args: Args, kwargs: Kwargs) -> Any:
            values, position, variant = first(call, args, kwargs)
            outcome = None
            if position >= 0:
                try:
                    result = layer(call, *variant)
                except Exception as error:  # noqa: BLE001  # decided in rounds
                    self.left(call, values, position)
                    outcome = Outcome(error=error)
                except BaseException:
                    self.left(call, values, position)
                    raise
                else:
                    if counts:
                        self.left(call, values, position, result)
                    if is_ready:
                        if call.unsettled is not None:
                            run_blocking(call.unsettled.settle(self.blocking, call, None))
                        return result
                    outcome = Outcome(result)
            try:
                rounds = self.remembering(self.blocking, layer, call, args, kwargs, values, position, variant, outcome)
                return run_blocking(rounds).get()
            finally:
                del outcome

        return in_rounds

    def wrap_async(self, layer: Layer) -> Layer:
        """Return the layer that retries an async function."""
        first, counts, is_ready = self.first, self.counts, not self.judges

        async def in_rounds(call: Call, args: Args, kwargs: Kwargs) -> Any:
            values, position, variant = first(call, args, kwargs)
            outcome = None
            if position >= 0:
                try:
                    result = await layer(call, *variant)
                except Exception as error:  # noqa: BLE001  # decided in rounds
                    self.left(call, values, position)
                    outcome = Outcome(error=error)
                except BaseException:
                    self.left(call, values, position)
                    raise
                else:
                    if counts:
                        self.left(call, values, position, result)
                    if is_ready:
                        if call.unsettled is not None:
                            await call.unsettled.settle(self.asynchronous, call, None)
                        return result
                    outcome = Outcome(result)
            try:
                host = self.asynchronous
                rounds = self.remembering(host, layer, call, args, kwargs, values, position, variant, outcome)
                return (await rounds).get()
            finally:
                del outcome

        return in_rounds

    # What waits

    async def remembering(
        self,
        host: Host,
        layer: Layer,
        call: Call,
        args: Args,
        kwargs: Kwargs,
        values: Values | None,
        position: int,
        variant: Variant,
        first: Outcome | None,
    ) -> Outcome:
        """Run rounds of attempts, and remember what they tell of the values.

        Args:
            host, layer, call: as for `rounds`.
            args, kwargs: the arguments of the call.
            values: the values; None if there are none.
            position, variant: the value of the first attempt, and its arguments, if it has been made already.
            first: the outcome of that attempt.
        """
        if values is None or len(values) == 1:
            return await self.rounds(host, layer, call, [variant], first)
        tries = Tries(self.memory, self.alternatives.name, values, self.kind_of_value, self.throttled_for, call)
        try:
            if first is None:
                plan = await self.ready(host, call, tries)
                if plan.steady:
                    self.steady = Steady(values, tries.ids, plan, self.memory.rules, self.memory.home)
                order = plan.first
            else:
                if first.error is not None:
                    await self.tell(host, tries.failed, position, first.error, call)
                plan = await self.memory.run(host, lambda: self.memory.plan(tries.ids), lambda _: None)
                order = (position, *(each for each in plan.first if each != position))
            now = self.clock.monotonic()

            def variant_of(each: int) -> Variant:
                return (*self.alternatives.variant(values, each, args, kwargs), each)

            return await self.rounds(
                host,
                (self.tried_async if host is self.asynchronous else self.tried)(layer, tries),
                call,
                [variant_of(each) for each in order],
                first,
                [(variant_of(each), until - now) for each, until in plan.later if each not in order],
            )
        finally:
            self.memory.run_later(tries.close)
            del first

    async def ready(self, host: Host, call: Call, tries: Tries) -> Plan:
        """Choose the values of the first round. If all are set aside, wait for the first one that comes back.

        Denied ones are asked before that if the call may not wait so long.

        Raises:
            CallTimeoutError: all are throttled for longer than the call has left.
            RateLimitExceededError: all are throttled for longer than `max_delay`.
        """
        waited = 0.0
        while True:
            plan: Plan = await self.memory.run(host, tries.choose, lambda _: tries.close())
            if not plan.all_aside or not plan.later:
                return plan
            now, longest = self.clock.monotonic(), self.policy.max_delay
            delay = min([until for _, until in plan.later]) - now
            is_late, is_long = delay >= call.time_left(now), waited + delay > longest
            if (is_late or is_long) and plan.first:
                return plan
            text = (
                f"{self.name}: all values of {self.alternatives} are throttled, and the first is available again in "
                f"{approximate_duration(delay)}"
            )
            if is_late:
                raise call.out_of_time(f"{text}, after {call.limit}", "fallback", retry_in=delay)
            if is_long:
                text += f", longer than max_delay ({format_duration(longest)})"
                raise call.stats.count_rejection("fallback", RateLimitExceededError(text, retry_in=delay))
            log("waiting", "%s", text, about=call.stats, what="fallback", seconds=delay)
            call.stats.count_wait("fallback", delay)
            waited += delay
            await host.sleep(delay)
            call.stats.emit(Waited, what="fallback", seconds=delay)

    # Around each attempt

    def tried(self, layer: Layer, tries: Tries) -> Callable[..., Any]:
        """Return the layer of an attempt with the value at a position."""

        def attempt(call: Call, args: Args, kwargs: Kwargs, position: int) -> Any:
            tries.begin(position)
            try:
                result = layer(call, args, kwargs)
            except Exception as error:
                tries.failed(position, error, call)
                raise
            tries.worked(position, result)
            return result

        return attempt

    def tried_async(self, layer: Layer, tries: Tries) -> Callable[..., Any]:
        """Return the layer of an attempt of an async function with the value at a position."""
        host = self.asynchronous

        async def attempt(call: Call, args: Args, kwargs: Kwargs, position: int) -> Any:
            await self.tell(host, tries.begin, position)
            try:
                result = await layer(call, args, kwargs)
            except Exception as error:
                await self.tell(host, tries.failed, position, error, call)
                raise
            await self.tell(host, tries.worked, position, result)
            return result

        return attempt

    async def tell(self, host: Host, record: Callable[..., object], *args: Any) -> None:
        """Record something, without blocking an event loop."""
        if self.memory.home.blocks:
            await host.ensure(record, *args)
        else:
            record(*args)

    def kind_of_value(self, error: Exception, call: Call) -> Kind:
        """Return the kind of a failure. One after which `fallback.on` uses no other value is not the value's fault."""
        kind = self.classifier.kind_of(error)
        return Kind.PERMANENT if kind is Kind.DENIED and not self.alternatives.is_meant(error, call.answers) else kind

    def throttled_for(self, error: Exception) -> float:
        """Return the seconds for which a throttled value is left alone."""
        return self.backoff.asked(error) or THROTTLED_DELAY
