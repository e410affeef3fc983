"""Priorities of calls: a block for users, and the layer that gives a function's calls the priority of their policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, get_args

from opero.errors import ConfigError, nearest
from opero.runtime.priorities import Priority, current, restore

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opero.executors.call import Call, Layer
    from opero.policies.priority import PriorityPolicy


class priority:  # noqa: N801  # used like a function
    """Give the bound functions that are called within a block a priority, for sync and async code alike.

        with opero.priority("background"):      # also `async with`
            rebuild_index()

    It matters where there is not enough for all calls: in the queue of a bulkhead the more important go first, and a
    throttle rejects the less important first. Tasks that are created within the block inherit it, and so do maps with
    their threads and worker processes. It goes before the priority of a policy; a block within another one goes before
    that.

    Args:
        level: "critical", "normal" or "background".

    Raises:
        ConfigError: this is no priority.
    """

    __slots__ = ("_level", "_token")

    def __init__(self, level: Priority) -> None:
        if level not in get_args(Priority):
            known = ", ".join(map(repr, get_args(Priority)))
            raise ConfigError(f"opero.priority: {level!r} is none of {known}{nearest(str(level), get_args(Priority))}")
        self._level = level
        self._token: Token[Priority | None] | None = None

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError("this priority has begun already; call opero.priority() again for another block")
        self._token = current.set(self._level)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            restore(self._token)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class PriorityExecutor:
    """Gives the calls of a function, and what they call, the priority of its policy, unless they have one already."""

    def __init__(self, policy: PriorityPolicy) -> None:
        self.policy = policy

    def wrap(self, layer: Layer) -> Layer:
        level = self.policy.level

        def prioritized(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            if current.get() is not None:
                return layer(call, args, kwargs)
            token = current.set(level)
            try:
                return layer(call, args, kwargs)
            finally:
                restore(token)

        return prioritized

    def wrap_async(self, layer: Layer) -> Layer:
        level = self.policy.level

        async def prioritized(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            if call.inherited is not None:
                call.check_time()
            if current.get() is not None:
                return await layer(call, args, kwargs)
            token = current.set(level)
            try:
                return await layer(call, args, kwargs)
            finally:
                restore(token)

        return prioritized
