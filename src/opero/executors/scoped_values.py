"""Rounds of attempts over the values of a fallback argument, with a memory of them for each key of a keyed scope."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from opero.executors.values import ValuesRetryExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.executors.call import Layer
    from opero.executors.scoped import Scoped
    from opero.executors.value_memory import ValueMemory


class ScopedValues(ValuesRetryExecutor):
    """Runs the attempts of a function with what is remembered of values for a call's key.

    Args:
        policy, clock, name, classifier, alternatives, memory, one_shot: as for `ValuesRetryExecutor`, but `memory`
            picks one by the key of a call.
    """

    def __init__(
        self, policy: Any, clock: Any, name: str, classifier: Any, alternatives: Any, memory: Scoped, *more: Any
    ):
        own = memory.limiter
        super().__init__(policy, clock, name, classifier, alternatives, own._make(own.policy, clock, name), *more)
        memory.around = self._with_memory
        self.scoped = memory

    def _with_memory(self, memory: ValueMemory) -> _OfKey:
        return _OfKey(self, memory)

    def wrap(
        self,
        layer: Layer,
        function: Callable[..., Any] | None = None,
        check_response: Callable[[Any], None] | None = None,
    ) -> Layer:
        return self.scoped.wrap(layer, function, check_response)

    def wrap_async(self, layer: Layer) -> Layer:
        return self.scoped.wrap_async(layer)


class _OfKey:
    """The executor with the memory of one key."""

    def __init__(self, executor: ScopedValues, memory: ValueMemory) -> None:
        other: Any = copy(executor)
        other.memory, other.steady = memory, None
        self._executor = other

    def wrap(self, *args: Any) -> Layer:
        return ValuesRetryExecutor.wrap(self._executor, *args)

    def wrap_async(self, layer: Layer) -> Layer:
        return ValuesRetryExecutor.wrap_async(self._executor, layer)
