"""The path of every call. It is as short as it can be: measure whatever is added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from opero.executors.call import MISS
from opero.runtime.generators import relaying, relaying_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.binding.pipeline import Chain
    from opero.observe.stats import Stats
    from opero.runtime.functions import FunctionKind

__all__ = ["calling"]


class Callee(Protocol):
    """What is asked at each call: a binding."""

    chain: Chain

    @property
    def stats(self) -> Stats: ...
    @property
    def kind(self) -> FunctionKind: ...


def calling(binding: Callee) -> Callable[..., Any]:
    """The function that users call, of the binding's own kind. A success costs little more than the bare function."""
    stats = binding.stats

    def bound(*args: Any, **kwargs: Any) -> Any:
        stats.calls += 1
        chain = binding.chain
        try:
            function = chain.function
            if function is not None:
                return function(*args, **kwargs)
            hit = chain.hit
            if hit is not None:
                found = hit(*args, **kwargs) if kwargs else hit(*args)  # unpacking no keywords costs, too
                if found is not MISS:
                    return found
            return chain.layer(chain.call(), args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            return chain.fail(error, args, kwargs)

    async def bound_async(*args: Any, **kwargs: Any) -> Any:
        stats.calls += 1
        chain = binding.chain
        try:
            function = chain.function
            if function is not None:
                return await function(*args, **kwargs)
            hit = chain.hit
            if hit is not None:
                found = hit(*args, **kwargs) if kwargs else hit(*args)
                if found is not MISS:
                    return found
            return await chain.layer(chain.call(), args, kwargs)
        except Exception as error:  # noqa: BLE001  # decided in fail
            return await chain.fail(error, args, kwargs)

    return {
        "sync": bound,
        "async": bound_async,
        "generator": relaying(bound),
        "async_generator": relaying_async(bound_async),
    }[binding.kind]
