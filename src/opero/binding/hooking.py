"""Puts the hooks of a pipeline in force, in the place of those of the pipeline before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opero.executors.state.home import Holder
from opero.observe import hooks
from opero.observe.hooks import Emitter

if TYPE_CHECKING:
    from opero.binding.invocation import Pipeline
    from opero.observe.stats import Stats


def put_in_force(stats: Stats, old: Pipeline | None, new: Pipeline | None) -> None:
    """Call the hooks of a pipeline from now on.

    Args:
        stats: those of the function, which emit its events.
        old: the pipeline that was in force; None if there was none.
        new: the one that is; None if the function runs on none any more.
    """
    before, after = stats.hooks, None if new is None else new.hooks
    successors = [] if new is None else _emitters(new)
    for each in () if old is None else _emitters(old):
        # What calls under way report to an executor whose state has migrated concerns the new hooks as well.
        has_migrated = isinstance(each, Holder) and any(
            isinstance(one, Holder) and one.home.successor is each.home.successor for one in successors
        )
        each.replace_hooks(before, after if has_migrated else None)
    for each in successors:
        each.replace_hooks(before, after)
    hooks.put_in_force(stats, after)


def _emitters(pipeline: Pipeline) -> list[Emitter]:
    """Return what emits events that concern several functions."""
    cache = pipeline.cache
    found = (*pipeline.executors.values(), None if cache is None else getattr(cache.store, "breaker", None))
    return [each for each in found if isinstance(each, Emitter)]
