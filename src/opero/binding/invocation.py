"""The path of every call. It is as short as it can be: measure whatever is added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from opero.executors.call import MISS
from opero.runtime.generators import relaying, relaying_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.binding.pipeline import Pipeline
    from opero.binding.target import Target

__all__ = ["PipelineHolder", "calling"]


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

    return {
        "sync": bound,
        "async": bound_async,
        "generator": relaying(bound),
        "async_generator": relaying_async(bound_async),
    }[target.kind]
