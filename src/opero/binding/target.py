"""The target of a policy: a function and its properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from opero.dataclass import dataclass
from opero.observe.stats import Stats
from opero.runtime.clock import default_clock
from opero.runtime.functions import is_method, kind_of, short_name

if TYPE_CHECKING:
    from opero.policies.policy import Policy
    from opero.runtime.clock import Clock
    from opero.runtime.functions import FunctionKind


TRAITS = "__opero_traits__"
"""The attribute of a function that has its traits."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What holds for a function whatever policy it has: those by which opero goes under clients say it of themselves.

    Attributes:
        refusal: returns why a policy does not fit, with the cure; None if it fits.
        why_once: called with the exception of a failed attempt and the arguments: returns why the call must not be
            repeated, although the policy would; None if it may be.
        keys: names that stand for something else than a parameter in `scope.by`, each with a function of the arguments.
            With `scope: auto`, the first is the one by which states are kept.
        why_alone: called with the arguments: returns why no other attempt may run beside one, as a hedge does; None if
            one may. Without it, a function that has `why_once` is never hedged.
    """

    refusal: Callable[[Policy], str | None] | None = None
    why_once: Callable[..., str | None] | None = None
    keys: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    why_alone: Callable[..., str | None] | None = None


NO_TRAITS = Traits()


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
    """

    function: Callable[..., Any]
    kind: FunctionKind
    is_method: bool
    name: str
    clock: Clock
    stats: Stats

    @classmethod
    def of(cls, function: Callable[..., Any], clock: Clock | None = None, stats: Stats | None = None) -> Target:
        """Describe a function.

        Args:
            function: any callable.
            clock: the source of time and randomness. Default: that of the process.
            stats: counts to continue. Default: new ones.
        """
        stats = stats or Stats()
        return cls(
            function,
            kind_of(function),
            is_method(function),
            short_name(function),
            clock or default_clock(),
            stats,
        )

    @property
    def traits(self) -> Traits:
        """What holds for the function whatever policy it has."""
        traits: Traits = getattr(self.function, TRAITS, NO_TRAITS)
        return traits

    @property
    def is_async(self) -> bool:
        """Whether its attempts are awaited."""
        return self.kind in ("async", "async_generator")

    @property
    def is_stream(self) -> bool:
        """Whether it yields items one by one."""
        return self.kind in ("generator", "async_generator")
