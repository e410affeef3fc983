"""The target of a policy: a function and its properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opero.executors.call import Call
from opero.observe.stats import Stats
from opero.runtime.clock import SYSTEM
from opero.runtime.functions import is_method, kind_of, short_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.runtime.clock import Clock
    from opero.runtime.functions import FunctionKind

__all__ = ["Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """One function that a policy is bound to.

    Attributes:
        function: the function as its user wrote it.
        kind: "sync", "async", "generator" or "async_generator".
        is_method: whether it was defined in a class and takes the instance first.
        name: its qualified name, for messages.
        clock: the source of time and randomness.
        stats: the counts of its calls; they outlive every change of the policy.
        call: the class of its calls, which count in `stats`.
    """

    function: Callable[..., Any]
    kind: FunctionKind
    is_method: bool
    name: str
    clock: Clock
    stats: Stats
    call: type[Call]

    @classmethod
    def of(cls, function: Callable[..., Any], clock: Clock | None = None, stats: Stats | None = None) -> Target:
        """Describe a function.

        Args:
            function: any callable.
            clock: the source of time and randomness. Default: the system's.
            stats: counts to continue. Default: new ones.
        """
        stats = stats or Stats()
        return cls(
            function,
            kind_of(function),
            is_method(function),
            short_name(function),
            clock or SYSTEM,
            stats,
            Call.of(stats),
        )

    @property
    def is_async(self) -> bool:
        """Whether its attempts are awaited."""
        return self.kind in ("async", "async_generator")
