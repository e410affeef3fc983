"""The path of every call. It is as short as it can be: measure whatever is added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from opero.executors.call import MISS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.binding.target import Target
    from opero.executors.cache import CacheExecutor
    from opero.executors.call import Call, Layer
    from opero.policies.policy import Policy

__all__ = ["Pipeline", "PipelineHolder", "calling", "failing", "innermost", "unresolved"]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The layers of a call, as one configuration built them.

    Attributes:
        function: the function to call if no layer but an outermost retry surrounds it; else None.
        layer: the outermost layer, without an outermost retry.
        hit: returns a call's result if a memory cache has it, else `MISS`; None if there is no such cache.
        call: makes the `Call` that layers pass on.
        fail: handles an exception that came out of `function` or `layer`: retries, if retry is outermost.
        whole: all layers inside the cache, for a map, which reads and fills the cache itself.
        policy: the policy that it was built from.
        executors: kind of policy → its executor.
        own: the kinds whose state belongs to this function alone, among those that functions can share.
    """

    function: Callable[..., Any] | None
    layer: Layer
    hit: Callable[..., Any] | None
    call: type[Call]
    fail: Callable[..., Any]
    whole: Layer
    policy: Policy
    executors: Mapping[str, Any]
    own: frozenset[str]

    def start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Start a call: return its result, or for an async function an awaitable."""
        return self.layer(self.call(), args, kwargs) if self.function is None else self.function(*args, **kwargs)

    @property
    def cache(self) -> CacheExecutor | None:
        """The cache, or None."""
        return self.executors.get("cache")


class PipelineHolder(Protocol):
    """Holds the pipeline that is in force; each call reads it once."""

    @property
    def pipeline(self) -> Pipeline: ...


def calling(target: Target, holder: PipelineHolder) -> Callable[..., Any]:
    """Return a function of the target's own kind that calls it through the holder's pipeline.

    A success costs little more than a call of the bare function.
    """
    stats = target.stats

    def bound(*args: Any, **kwargs: Any) -> Any:
        stats.calls += 1
        pipeline = holder.pipeline
        try:
            function = pipeline.function
            if function is not None:
                return function(*args, **kwargs)
            hit = pipeline.hit
            if hit is not None:
                found = hit(*args, **kwargs) if kwargs else hit(*args)  # unpacking empty keywords takes time
                if found is not MISS:
                    return found
            return pipeline.layer(pipeline.call(), args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            return pipeline.fail(error, args, kwargs)

    async def bound_async(*args: Any, **kwargs: Any) -> Any:
        stats.calls += 1
        pipeline = holder.pipeline
        try:
            function = pipeline.function
            if function is not None:
                return await function(*args, **kwargs)
            hit = pipeline.hit
            if hit is not None:
                found = hit(*args, **kwargs) if kwargs else hit(*args)
                if found is not MISS:
                    return found
            return await pipeline.layer(pipeline.call(), args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            return await pipeline.fail(error, args, kwargs)

    if target.kind in ("generator", "async_generator"):
        from opero.runtime.generators import relaying, relaying_async

        return relaying(bound) if target.kind == "generator" else relaying_async(bound_async)
    return bound_async if target.kind == "async" else bound


def innermost(target: Target, function: Callable[..., Any]) -> Layer:
    """Return the function as the innermost layer. The coroutine of an async function is passed on as it is."""
    stats = target.stats

    def invoke(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        stats.executed += 1
        return function(*args, **kwargs)

    return invoke


def failing(target: Target, recover: Callable[..., Any] | None, attempt: Layer, *, counts: bool) -> Callable[..., Any]:
    """Return the handler of exceptions that come out of the layers.

    Args:
        target: the function.
        recover: makes further attempts, if retry is outermost; else None.
        attempt: the layers of one attempt.
        counts: whether the error of a failed attempt is counted here, as no layer counts it.
    """
    stats, new_call = target.stats, target.call

    # An exception's traceback refers to the frames it came through. None of them may keep a reference to the exception.

    def fail(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            if recover is not None:
                return recover(attempt, new_call(), args, kwargs, error)
            if counts:
                stats.count_error(error)
            raise error
        except BaseException:
            stats.failures += 1
            raise
        finally:
            del error

    async def fail_async(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            if recover is not None:
                return await recover(attempt, new_call(), args, kwargs, error)
            if counts:
                stats.count_error(error)
            raise error
        except BaseException:
            stats.failures += 1
            raise
        finally:
            del error

    return fail_async if target.is_async else fail


def unresolved(target: Target, policy: Policy, resolve: Callable[[], Pipeline], before: Pipeline | None) -> Pipeline:
    """Build a pipeline whose first call resolves the real one, and runs on that from beginning to end.

    Args:
        target: the function.
        policy: a policy without any layer.
        resolve: returns the real pipeline.
        before: the pipeline whose state is to continue, or None.
    """

    def resolve_and_call(*args: Any, **kwargs: Any) -> Any:
        pipeline = resolve()
        target.stats.executed += pipeline.function is not None  # this call began before calls counted as attempts
        try:
            return pipeline.start(args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            return pipeline.fail(error, args, kwargs)

    async def resolve_and_call_async(*args: Any, **kwargs: Any) -> Any:
        pipeline = resolve()
        target.stats.executed += pipeline.function is not None  # as above
        try:
            return await pipeline.start(args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            return await pipeline.fail(error, args, kwargs)

    def fail(error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        raise error

    function = resolve_and_call_async if target.is_async else resolve_and_call
    layer = innermost(target, function)
    return Pipeline(
        function=function,
        layer=layer,
        hit=None,
        call=target.call,
        fail=fail,
        whole=layer,
        policy=policy,
        executors={} if before is None else before.executors,
        own=frozenset() if before is None else before.own,
    )
