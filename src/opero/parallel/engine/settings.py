"""The settings of one map: the function under its policies, and the options of the call; fixed when the map starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from opero.dataclass import dataclass

if TYPE_CHECKING:
    import os

    from opero.binding.binding import Binding
    from opero.binding.invocation import Pipeline
    from opero.parallel.engine.batching import BatchRule
    from opero.parallel.engine.stage import Stage
    from opero.policies.parallel import ParallelPolicy
    from opero.values import ItemCost, Progress


@dataclass(frozen=True, slots=True)
class FixedArguments:
    """The arguments that all calls share: those before and after the item, and the keywords.

    Attributes:
        spreads: an item is not an argument, but has several, as for `starmap`.
    """

    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    spreads: bool = False

    def around(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call for an item or a batch.

        Raises:
            TypeError: the item should have several arguments, and is none that can be spread.
        """
        if self.spreads:
            return (*self.before, *spread(item), *self.after), self.kwargs or {}
        return (*self.before, item, *self.after), self.kwargs or {}


def spread(item: Any) -> Iterable[Any]:
    """Return the arguments that an item of `starmap` has.

    Raises:
        TypeError: it has none.
    """
    if isinstance(item, Iterable) and not isinstance(item, str | bytes | bytearray | Mapping):
        return item
    raise TypeError(
        f"an item of starmap is a tuple of arguments for one call, and this one is of type {type(item).__name__}; use "
        "map for items that are one argument each"
    )


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one call of a map, beside the policy.

    Attributes:
        journal: the file in which finished items are recorded, and from which those of an earlier run are taken.
        failed_only: run only the items that the journal records as failed.
        progress: as in the policy, or a callback that receives each `Progress`; None: as the policy says.
        stage: answers items before anything else does; None: there is no such stage.
    """

    journal: str | os.PathLike[str] | None = None
    failed_only: bool = False
    progress: bool | Literal["auto"] | Callable[[Progress], object] | None = None
    stage: Stage | None = None


@dataclass(frozen=True, slots=True)
class MapSettings:
    """The settings of one map.

    Attributes:
        name: the function's name, for messages.
        binding: the mapped function under its policy.
        pipeline: the layers in force when the map began.
        policy: how to map.
        mode: of `ParallelPolicy`, checked against the function; "auto" until the first items have been measured.
        position: of the parameter that receives the item.
        rule: whether calls receive batches.
        fixed: the arguments that all calls share.
        options: of this call.
        shares_state: limits hold for all workers together, or what is remembered of fallback values does.
        cost: what an item costs, if an earlier map measured it.
        remember_cost: keeps a measurement for the next map.
    """

    name: str
    binding: Binding
    pipeline: Pipeline
    policy: ParallelPolicy
    mode: str
    position: int
    rule: BatchRule
    fixed: FixedArguments
    options: Options
    shares_state: bool
    cost: ItemCost | None
    remember_cost: Callable[[ItemCost], Any]

    @property
    def concurrency(self) -> int:
        """Concurrent calls in one worker."""
        return self.policy.concurrency if self.binding.is_async else 1
