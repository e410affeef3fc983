"""The path of every call. It is as short as it can be: measure whatever is added to it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from types import CellType, CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Protocol

from opero.binding.observed import observed, observed_async
from opero.dataclass import dataclass
from opero.errors import FailedResponseError, RejectedError
from opero.executors.call import MISS, Call, abandon
from opero.failures.kinds import ORDINARY
from opero.runtime import deadlines
from opero.runtime.generated import ANY, Parameters, code
from opero.runtime.interruption import interruptible
from opero.runtime.tracebacks import trim

if TYPE_CHECKING:
    from opero.binding.target import Target
    from opero.executors.cache import CacheExecutor
    from opero.executors.call import Layer
    from opero.executors.classifier import Classifier
    from opero.executors.responses import ResponseCheck
    from opero.observe.hooks import Hooks
    from opero.observe.receipts import CallReceipt
    from opero.observe.stats import Stats
    from opero.policies.policy import Policy


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The layers of a call, as one configuration built them.

    Attributes:
        function: the function to call if no layer but an outermost retry surrounds it; else None.
        layer: the outermost layer, without an outermost retry.
        hit: returns a call's result if a memory cache has it, else `MISS`; None if there is no such cache.
        fail: handles an exception that came out of `function` or `layer`: retries, if retry is outermost. It receives
            the call that made the first attempt, if `layer` did.
        whole: all layers inside the cache, for a map, which reads and fills the cache itself.
        stats: the counts of the function's calls.
        policy: the policy that it was built from.
        profile: the name of the profile that it is from; "" if there is none.
        executors: kind of policy → its executor.
        own: the kinds whose state belongs to this function alone, among those that functions can share.
        check: raises an exception for a result that is a failed response; None if responses are not looked at.
        classifier: says of which kind failures are; None if no layer asks.
        hooks: what is called with the function's events; None if there is nothing.
        canary: the pipelines between which each call chooses, if there are two; what is above is of the first then.
        is_exact: whether something else than the function receives the arguments as well, such as a cache's own key
            function: they have to be passed on by position or name just as the caller did.
        is_resolved: whether calls run on it; false if they only find another one to run on.
        monotonic: that of the function's clock.
        inherits: whether calls inherit deadlines. Those of a function without a policy, or with nothing but a fallback
            result, do not: so it is while opero is switched off.
    """

    function: Callable[..., Any] | None
    layer: Layer
    hit: Callable[..., Any] | None
    fail: Callable[..., Any]
    whole: Layer
    stats: Stats
    policy: Policy
    executors: Mapping[str, Any]
    own: frozenset[str]
    profile: str = ""
    check: ResponseCheck | None = None
    classifier: Classifier | None = None
    hooks: Hooks | None = None
    canary: Canary | None = None
    is_exact: bool = False
    is_resolved: bool = True
    monotonic: Callable[[], float] = time.monotonic
    inherits: bool = False

    @interruptible
    def start(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Start a call: return its result, or for an async function an awaitable."""
        if self.function is not None:
            if call.inherited is not None:
                call.check_time()
            return self.function(*args, **kwargs)
        return self.layer(call, args, kwargs)

    def checked(self, result: Any) -> Any:
        """Return the result of `start`.

        Raises:
            FailedResponseError: it is a failed response, and no layer has looked at it.
        """
        if self.function is not None and self.check is not None and type(result) not in ORDINARY:
            self.check(result)
        return result

    def stream_failed(self, error: Exception, receipt: CallReceipt | None = None) -> None:
        """Count the failure of a generator that had begun to yield items, which looked like a success."""
        if receipt is not None:
            receipt._enter()
        try:
            self.stats.count_error(error, self.classifier)
            self.stats.count_failure(error, classifier=self.classifier)
        finally:
            if receipt is not None:
                receipt._leave()

    @property
    def cache(self) -> CacheExecutor | None:
        """The cache, or None."""
        return self.executors.get("cache")


class Canary(Protocol):
    """See `opero.binding.canary`."""

    @property
    def trial(self) -> Any: ...
    @property
    def main(self) -> Pipeline: ...
    @property
    def other(self) -> Pipeline: ...


class PipelineHolder(Protocol):
    """Holds the pipeline that is in force; each call reads it once.

    Attributes:
        pipeline: the pipeline in force.
        direct_pipeline: the last one in force that was not exact, on which calls that began before finish.
    """

    @property
    def pipeline(self) -> Pipeline: ...
    @property
    def direct_pipeline(self) -> Pipeline: ...


CALL = """
{async_}def generated({parameters}):
    nonlocal countdown
    countdown -= 1
    _pipeline = holder.{pipeline}
    if (countdown < 0 or (has_deadlines and deadline() is not None)) and _pipeline.is_resolved:
        return {await_}observed{suffix}(_pipeline, {args}, {kwargs})
    try:
        _function = _pipeline.function
        if _function is not None:
            _result = {await_}_function({call})
            if type(_result) is stats.ordinary:
                return _result
            _type = type(_result)
            if _type in ORDINARY:
                stats.ordinary = _type
                return _result
            _check = _pipeline.check
            if _check is not None and not (_type is dict and "ResponseMetadata" not in _result):
                _check(_result)
            return _result
        _hit = _pipeline.hit
        if _hit is not None:
            _found = _hit({call})
            if _found is not MISS:
                return _found
        _call = Call()
        _call.stats = stats
        return {await_}_pipeline.layer(_call, {args}, {kwargs})
    except Exception as _error:
        _call = None if _function is not None or _hit is not None else _call
        return {await_}_pipeline.fail(_error, {args}, {kwargs}, _call)
    except BaseException:
        if "_call" in locals():
            abandon(_call, _pipeline.executors)
        raise
"""
"""What a bound function does. A success costs little more than a call of the bare function."""
OUTER = ("countdown", "holder", "stats")
"""The names in it that differ from function to function."""
NAMESPACE = {
    "__name__": __name__,
    "MISS": MISS,
    "ORDINARY": ORDINARY,
    "Call": Call,
    "abandon": abandon,
    "deadline": deadlines.current.get,
    "observed": observed,
    "observed_async": observed_async,
}
"""The other names in it."""
deadlines.use.show_in(NAMESPACE)


class Entry:
    """The function by which callers enter a pipeline.

    It has the parameters of the user's function, so that no argument is packed or unpacked. But then it passes by
    position what can be passed so, and defaults like other values; where something else than the function receives the
    arguments as well (`Pipeline.is_exact`), they have to be passed on as they came. So it has two codes, of which one
    is in force.

    Args:
        target: the user's function.
        holder: holds the pipeline.
        is_exact: whether arguments have to be passed on as they come.

    Attributes:
        function: what callers call; of the same kind as the user's function.
    """

    __slots__ = ("_direct", "_target", "function")

    def __init__(self, target: Target, holder: PipelineHolder, *, is_exact: bool) -> None:
        values = {"countdown": target.stats.countdown, "holder": CellType(holder), "stats": CellType(target.stats)}
        exact = _exact(is_async=target.is_async)
        self._target = target
        self._direct: CodeType | None = None
        self.function: Any = FunctionType(
            exact, NAMESPACE, exact.co_name, None, tuple([values[name] for name in exact.co_freevars])
        )
        if target.kind in ("generator", "async_generator"):
            from opero.runtime.generators import relaying, relaying_async

            def on_failure(error: Exception, receipt: Any) -> None:
                holder.pipeline.stream_failed(error, receipt)  # the pipeline of then

            relay: Any = relaying if target.kind == "generator" else relaying_async
            self.function = relay(self.function, on_failure)
        elif not is_exact:
            self.use(is_exact=False)

    @property
    def is_direct(self) -> bool:
        """Whether the function has the parameters of the user's function now."""
        return self._direct is not None and self.function.__code__ is self._direct

    def use(self, *, is_exact: bool) -> None:
        """Pass on the arguments of later calls as they come, or not."""
        target, function = self._target, self.function
        if type(target.function) is not FunctionType or target.kind not in ("sync", "async"):
            return
        if is_exact:
            if self._direct is not None:
                function.__code__ = _exact(is_async=target.is_async)
            return
        if self._direct is None:
            parameters = Parameters.of(target.function)
            # The other code, which has no parameters but `*args` and `**kwargs`, ignores defaults.
            function.__defaults__, function.__kwdefaults__ = parameters.defaults, parameters.keyword_defaults
            self._direct = code(
                CALL, parameters, OUTER, pipeline="direct_pipeline", **_keywords(is_async=target.is_async)
            )
        function.__code__ = self._direct


def _keywords(*, is_async: bool) -> dict[str, str]:
    if is_async:
        return {"async_": "async ", "await_": "await ", "suffix": "_async"}
    return {"async_": "", "await_": "", "suffix": ""}


@functools.cache
def _exact(*, is_async: bool) -> CodeType:
    return code(CALL, ANY, OUTER, pipeline="pipeline", **_keywords(is_async=is_async))


def failing(
    target: Target,
    recover: Callable[..., Any] | None,
    attempt: Layer,
    executors: Mapping[str, Any],
    classifier: Any = None,
    *,
    counts: bool,
) -> Callable[..., Any]:
    """Return the handler of exceptions that come out of the layers.

    Args:
        target: the function.
        recover: makes further attempts, if retry is outermost; else None.
        attempt: the layers of one attempt.
        executors: those of the pipeline.
        counts: whether the error of a failed attempt is counted here, as no layer counts it. One of an attempt that a
            layer has rejected is not.
        classifier: says of which kind failures are. Default: their shape does.
    """
    stats = target.stats

    # An exception's traceback refers to the frames it came through. None of them may keep a reference to the exception.
    # A bare `raise` does not add this frame to the traceback again.

    if target.is_async:

        async def fail_async(
            error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Call | None
        ) -> Any:
            try:
                if recover is not None:
                    if call is None:
                        call = Call()
                        call.stats = stats
                    return await recover(attempt, call, args, kwargs, error)
                if counts and not isinstance(error, RejectedError):
                    stats.count_error(error, classifier, call)
                raise error
            except FailedResponseError as failed:
                stats.count_failure(failed, call, classifier)
                return failed.result
            except BaseException as raised:
                if call is not None and not isinstance(raised, Exception):
                    abandon(call, executors)
                stats.count_failure(raised, call, classifier)
                trim(raised)
                raise
            finally:
                del error

        return fail_async

    def fail(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Call | None) -> Any:
        try:
            if recover is not None:
                if call is None:
                    call = Call()
                    call.stats = stats
                return recover(attempt, call, args, kwargs, error)
            if counts and not isinstance(error, RejectedError):
                stats.count_error(error, classifier, call)
            raise error
        except FailedResponseError as failed:
            stats.count_failure(failed, call, classifier)
            return failed.result
        except BaseException as raised:
            if call is not None and not isinstance(raised, Exception):
                abandon(call, executors)
            stats.count_failure(raised, call, classifier)
            trim(raised)
            raise
        finally:
            del error

    return fail
