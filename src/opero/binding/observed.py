"""Calls on the slower path: the first ones, a sample, those under a deadline, and all while their ends have listeners.

All but those under a deadline are timed, and deliver `CallSucceeded`; `Stats` delivers `CallFailed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from opero.events import CallSucceeded
from opero.executors.call import MISS, Call, abandon
from opero.failures.kinds import ORDINARY
from opero.observe.tracing import begin, follow, recording
from opero.runtime import deadlines
from opero.runtime.generators import Started
from opero.runtime.interruption import interruptible
from opero.runtime.log import log
from opero.runtime.tracebacks import trim

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.executors.call import Layer
    from opero.observe.stats import Stats

    class Pipeline(Protocol):
        """See `opero.binding.invocation`."""

        @property
        def stats(self) -> Stats: ...
        @property
        def monotonic(self) -> Callable[[], float]: ...
        @property
        def inherits(self) -> bool: ...
        @property
        def executors(self) -> Mapping[str, Any]: ...
        @property
        def hit(self) -> Callable[..., Any] | None: ...
        @property
        def function(self) -> Callable[..., Any] | None: ...
        @property
        def layer(self) -> Layer: ...
        @property
        def check(self) -> Callable[[Any], object] | None: ...
        @property
        def fail(self) -> Callable[..., Any]: ...
        def start(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any: ...
        def checked(self, result: Any) -> Any: ...


class CallObserver(Protocol):
    """Sees calls begin and end, in the threads and contexts of their callers.

    It has to listen to `CallFailed`, too, which has the error of a call that fails, and without which not every call is
    timed.
    """

    def begin(self, stats: Stats) -> Any:
        """A call begins; what this returns is passed to the other methods, which are called only if it is not None."""

    def succeed(self, begun: Any, stream: Started | None) -> None:
        """The call has returned a result; `stream` is a generator that has yielded its first item."""

    def end(self, begun: Any) -> None:
        """The call has ended, in whichever way."""


observers: list[CallObserver] = []
"""Who sees calls begin and end."""
attempt_wrappers: list[Callable[[Target, Callable[..., Any]], Callable[..., Any]]] = []
"""What surrounds each execution of a function. Pipelines are built with it, so it costs nothing while this is empty."""


_failed: set[str] = set()
"""The observers that have failed."""


def told(method: Callable[..., Any], *args: Any) -> Any:
    """Call a method of an observer, whatever it raises: that harms no call, and is logged once."""
    try:
        return method(*args)
    except Exception as error:  # noqa: BLE001  # such as of a span processor of the user's
        name = f"{type(method.__self__).__name__}.{method.__name__}"  # type: ignore[attr-defined]
        if name not in _failed:
            _failed.add(name)
            text = "%s, which observes calls, failed"
            log("observer_failed", text, name, observer=name, error=error, traceback=True)
        return None


def timed(pipeline: Pipeline) -> Call:
    """Return a new call that is timed. `settle` has to follow, however the call ends."""
    stats = pipeline.stats
    call = Call()
    call.stats = stats
    if deadlines.use.has_begun and pipeline.inherits:
        call.inherit(pipeline.monotonic)
    if observers:
        seen = [(each, told(each.begin, stats)) for each in observers]
        call.observed = tuple([each for each in seen if each[1] is not None])
    call.began = call.started = call.tried = now = perf_counter()
    if recording.is_on:
        call.receipt = begin(stats, now)
    call.weight = stats.begin_sample(now)
    return call


def begun(pipeline: Pipeline) -> Call:
    """Return a new call, which is timed if its turn has come or there is a listener; `settle` has to follow."""
    stats = pipeline.stats
    if stats.countdown.cell_contents < 0:
        return timed(pipeline)
    call = Call.of(stats)
    if deadlines.use.has_begun and pipeline.inherits:
        call.inherit(pipeline.monotonic)
    return call


def settle(call: Call) -> None:
    """Count how long a call took, if it is timed, and tell those who observe it of its end."""
    weight = call.weight
    if weight:
        now = perf_counter()
        call.stats.end_sample(now - call.began, weight)
        receipt = call.receipt
        if receipt is not None:
            receipt._end(now)
        if call.observed:
            for observer, begun in reversed(call.observed):
                told(observer.end, begun)


def ended(call: Call, result: Any) -> Any:
    """Return the result of a call. Deliver the event of its success, unless it has failed and told so."""
    if call.started:
        receipt = call.receipt
        if receipt is not None:
            receipt.outcome = "succeeded"
            receipt.error = None
            if type(result) is Started and not result.ended:
                follow(receipt, result)
        if call.observed:
            for observer, begun in call.observed:
                told(observer.succeed, begun, result if type(result) is Started and not result.ended else None)
        if CallSucceeded.handlers:
            call.stats.emit(CallSucceeded, seconds=perf_counter() - call.started)
    return result


def run(pipeline: Pipeline, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Make a call on a pipeline, from its memory cache to its last attempt."""
    try:
        result = MISS if pipeline.hit is None else pipeline.hit(*args, **kwargs)  # which counts requests
        if result is MISS:
            result = pipeline.checked(pipeline.start(call, args, kwargs))
    except Exception as error:  # noqa: BLE001  # decided in fail
        return pipeline.fail(error, args, kwargs, call)
    except BaseException:
        abandon(call, pipeline.executors)
        raise
    return result


# These two do what `run` does without another frame: recursion may go nearly as deep as without observers.


@interruptible
def observed(pipeline: Pipeline, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Make a call that is timed or has a deadline, and deliver the event of its end."""
    call = begun(pipeline)
    try:
        try:
            hit, function = pipeline.hit, pipeline.function
            result = MISS if hit is None else hit(*args, **kwargs)  # which counts requests
            if result is MISS and function is not None:
                if call.inherited is not None:
                    call.check_time()
                result = function(*args, **kwargs)
                if pipeline.check is not None and type(result) not in ORDINARY:
                    pipeline.check(result)
            elif result is MISS:
                result = pipeline.layer(call, args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            result = pipeline.fail(error, args, kwargs, call)
        return ended(call, result)
    except BaseException as error:
        if not isinstance(error, Exception):
            abandon(call, pipeline.executors)
        trim(error)  # of the frames that a call without observers does not have
        raise
    finally:
        settle(call)


async def observed_async(pipeline: Pipeline, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Make a call of an async function that is timed or has a deadline, and deliver the event of its end."""
    call = begun(pipeline)
    try:
        try:
            hit, function = pipeline.hit, pipeline.function
            result = MISS if hit is None else hit(*args, **kwargs)
            if result is MISS and function is not None:
                if call.inherited is not None:
                    call.check_time()
                result = await function(*args, **kwargs)
                if pipeline.check is not None and type(result) not in ORDINARY:
                    pipeline.check(result)
            elif result is MISS:
                result = await pipeline.layer(call, args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            result = await pipeline.fail(error, args, kwargs, call)
        return ended(call, result)
    except BaseException as error:
        if not isinstance(error, Exception):
            abandon(call, pipeline.executors)
        trim(error)
        raise
    finally:
        settle(call)
