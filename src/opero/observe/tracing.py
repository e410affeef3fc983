"""Recording of receipts: `with opero.trace() as receipt:`, and what begins the receipt of each call within.

Nothing is recorded unless a trace is open or `attach_receipts` is on: then one recorder receives the events, and adds
each to the receipt of the call in whose context it occurs. `opero.binding.observed` tells where calls begin and end.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

from opero.errors import ConfigError
from opero.events import EVENTS, CallFailed, CallSucceeded, Event, MapProgressed, RetryScheduled, plain
from opero.observe.receipts import CallReceipt, Receipt, Scope, Step, Timeline, current, place, shown
from opero.runtime.environment_files import flag
from opero.runtime.forking import RenewedLock
from opero.runtime.log import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType

    class Named(Protocol):
        function: str
        policy: str
        registry: Any


MOST = 10_000
"""Calls and steps that a trace records."""
DELIVERY = 0.001
"""Seconds that may pass until an event of this process is received."""
MOST_ALONE = 1000
"""Those that are recorded of a call outside of traces."""


class Recording:
    """Whether anything is recorded in this process.

    Attributes:
        traces: how many traces are open.
        always: whether calls outside of traces are recorded, until they have succeeded.
        is_on: whether either is the case, which each observed call reads.
    """

    __slots__ = ("always", "is_on", "traces")

    def __init__(self) -> None:
        self.traces = 0
        self.always = self.is_on = False

    def change(self, traces: int = 0, *, always: bool | None = None) -> None:
        """Open or close traces, or begin or cease to record other calls."""
        from opero.observe.subscriptions import attach, detach

        with _changing:
            self.traces += traces
            self.always = self.always if always is None else always
            is_on = self.always or self.traces > 0
            if is_on and not self.is_on:
                attach(RECORDER, RECORDED)
            elif self.is_on and not is_on:
                detach(RECORDER)
            self.is_on = is_on


class Recorder:
    """Receives the events, like a `Subscription`, but in worker processes as well."""

    def matches(self, event: Event) -> bool:
        return True

    def deliver(self, event: Event) -> None:
        """Add an event to the receipt of the call in whose context it occurs. This never raises."""
        try:
            here = place()
            if here is None:
                return
            is_own = isinstance(here, CallReceipt) and here.function == event.function
            if is_own and isinstance(event, CallFailed):
                here._fail(event.error, str(event.kind))  # type: ignore[attr-defined]  # it is a CallReceipt
                return
            scope = here._scope
            assert scope is not None
            moment = scope.now() + scope.epoch
            if scope.is_system and event.time < moment - DELIVERY:
                moment = event.time  # it was told later, by another process
            here._add(Step(event.name, moment, "" if is_own else event.function, _details(event)))
        except Exception as error:  # noqa: BLE001  # whatever is wrong with a receipt, the call goes on
            text = "a receipt lacks the event %s: %r"
            log("receipt_incomplete", text, event.name, error, of_event=event.name, error=error)


RECORDED = [each for each in EVENTS.values() if each not in (CallSucceeded, MapProgressed)]
KNOWN = {*(field.name for field in fields(Event))}
DETAILS = {each: tuple([field.name for field in fields(each) if field.name not in KNOWN]) for each in RECORDED}
"""The fields of each event that a step has."""
DETAILS[RetryScheduled] = ("attempt", "delay", "is_asked")  # the failed attempt before it has the error
RECORDER = Recorder()
recording = Recording()
_changing = RenewedLock()


def begin(called: Named, now: float) -> CallReceipt | None:
    """Begin the receipt of a call in this context; None if it is not recorded. `CallReceipt._end` has to follow.

    Args:
        called: the statistics of the called function.
        now: the moment, by `time.perf_counter`.
    """
    here = current.get()
    scope: Any = None if here is None else here._scope
    if scope is None or not scope.is_open:
        here = place()
        scope = None if here is None else here._scope
    receipt = CallReceipt()
    if here is not None:
        if scope.left <= 0:
            scope.omitted += 1
            return None
        scope.left -= 1
        (here._steps or here.steps).append(receipt)
    elif recording.always:
        scope = Scope(MOST_ALONE)
        receipt._alone = True
    else:
        return None
    receipt._scope = scope
    receipt.function = called.function
    receipt.policy = called.policy
    if called.registry is not None:
        receipt._configuration = called.registry.configuration
    receipt.time = (now if scope.is_system else scope.now()) + scope.epoch
    receipt._token = current.set(receipt)
    return receipt


def _details(event: Event) -> dict[str, Any]:
    found = {name: _masked(plain(getattr(event, name))) for name in DETAILS[type(event)]}
    if found.get("limit") == "":  # there is only one
        del found["limit"]
    return found


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {name: _masked(each) for name, each in value.items()}
    return [_masked(each) for each in value] if isinstance(value, list) else value


# Generators


def follow(receipt: CallReceipt, stream: Any) -> None:
    """A call has returned a generator that has yielded its first item: what happens in it belongs to the call."""
    receipt._alone = False  # its scope stays open
    stream.receipt = receipt
    stream.steps = (AsyncSteps if hasattr(stream.generator, "asend") else Steps)(receipt, stream)
    stream.on_end(lambda _: receipt._end())


class Steps:
    """Runs a generator from item to item, so that what happens meanwhile belongs to its call."""

    def __init__(self, receipt: CallReceipt, stream: Any) -> None:
        self.receipt = receipt
        self.inner = stream.steps
        self.close = stream.generator.close if self.inner is None else self.inner.close

    def run(self, step: Callable[[Any], Any], message: Any) -> Any:
        """Return the next item."""
        self.receipt._enter()
        try:
            return step(message) if self.inner is None else self.inner.run(step, message)
        finally:
            self.receipt._leave()


class AsyncSteps:
    """The same for an async generator."""

    def __init__(self, receipt: CallReceipt, stream: Any) -> None:
        self.receipt = receipt
        self.inner = stream.steps

    async def run(self, step: Any) -> Any:
        """Return the next item."""
        self.receipt._enter()
        try:
            return await (step if self.inner is None else self.inner.run(step))
        finally:
            self.receipt._leave()


# What users call


class trace:  # noqa: N801  # used like a function
    """Record what happens to the calls of bound functions within a block.

        with opero.trace() as receipt:
            get_user("ada")
        print(receipt)

    Calls of tasks and threads that are started within the block belong to it if they inherit its context variables:
    tasks of asyncio and trio, `asyncio.to_thread`, the threads in which opero enforces timeouts, and the threads and
    tasks of maps. Of a map's worker processes, failed attempts, retries, waits and the like are recorded as they are
    reported, but not to which calls they belong, and no successes.

    An exception that comes out of a call has the receipt of that call as its attribute `receipt`.

    Args:
        most: how many calls and steps to record at most; more are counted as `omitted`.

    Raises:
        ConfigError: `most` is no number of at least 1.
    """

    def __init__(self, *, most: int = MOST) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ConfigError(f"trace(): most must be a whole number of at least 1, got {most!r}")
        self._most = most
        self._open: list[tuple[Receipt, Token[Timeline | None]]] = []

    def __enter__(self) -> Receipt:
        outer, receipt = place(), Receipt()
        receipt._scope = scope = Scope(self._most, outer)
        receipt.time = scope.now() + scope.epoch
        if outer is not None:
            outer.steps.append(receipt)
        recording.change(+1)
        self._open.append((receipt, current.set(receipt)))
        return receipt

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        receipt, token = self._open.pop()
        receipt._close()
        with suppress(ValueError):  # a generator may be closed in another context
            current.reset(token)
        recording.change(-1)


def attach_receipts(enabled: bool = True) -> None:
    """Give every exception that comes out of a call its receipt, as within a trace: `error.receipt`.

    `OPERO_RECEIPTS=true` does so from the beginning, also in the worker processes of maps, which do not inherit what
    this function says. Receipts of calls that succeed are dropped. Each call takes some 4 µs more.

    Args:
        enabled: False ends it.

    Raises:
        ConfigError: `enabled` is neither true nor false.
    """
    if not isinstance(enabled, bool):
        raise ConfigError(f"attach_receipts() expects True or False, got {enabled!r}")
    recording.change(always=enabled)


if flag("OPERO_RECEIPTS", default=False):
    attach_receipts()
