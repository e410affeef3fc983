"""From a function of one item to a function of many: what users call, and which mode serves it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, MissingExtraError, nearest
from opero.policies.parallel import ParallelPolicy
from opero.policies.types import is_installed
from opero.runtime.functions import signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opero.binding.binding import Binding
    from opero.binding.pipeline import Pipeline
    from opero.parallel.engine.run import Run
    from opero.policies.policy import Policy
    from opero.values import ItemCost

__all__ = ["Mapper", "check_cluster"]


CLUSTERS = {"dask": "distributed", "ray": "ray"}
"""The modules that modes need of an extra."""
OPTIONS = ("journal", "failed_only", "progress")
"""Keywords of `map` and `stream` that are for the map, where the function has no parameter of that name."""


class Mapper:
    """Maps one bound function.

    Args:
        binding: the function under its policy, whose `parallel` part says how.
        single: the bound function, for one item.

    Attributes:
        cost: what an item costs, as the last map that had to find out has measured it.
    """

    def __init__(self, binding: Binding, single: Callable[..., Any]) -> None:
        self.binding = binding
        self.single = single
        self.position = 1 if binding.is_method else 0
        self.signature = signature_of(binding.function)
        self.cost: ItemCost | None = None

    # What users call

    def function(self) -> Callable[..., Any]:
        """The function of many items: `(items, ...) -> list`; for async functions to be awaited."""

        def mapped(*args: Any, **kwargs: Any) -> list[Any]:
            return self.run(args, kwargs).run()

        async def mapped_async(*args: Any, **kwargs: Any) -> list[Any]:
            return await self.run(args, kwargs).run_async()

        return mapped_async if self.binding.kind == "async" else mapped

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Results as they come: an iterator, or of an async function an async iterator.

        No more items are read ahead of the reader than `window` says.
        """
        run = self.run(args, kwargs)
        return run.stream_async() if self.binding.kind == "async" else run.stream()

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        """A run over the items among these arguments."""
        from opero.parallel.engine.run import Options, Run

        known = self.parameters
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs and name not in known}
        progress = options.get("progress")
        if not (progress is None or isinstance(progress, bool) or progress == "auto" or callable(progress)):
            raise TypeError(
                f"{self.binding.name}: progress is {progress!r:.60}; pass True, False, 'auto', or a function that gets "
                "each Progress"
            )
        if inspect.iscoroutinefunction(progress):
            raise TypeError(
                f"{self.binding.name}: the progress callback {progress!r:.60} is async, and nobody would await it; "
                "pass a plain function"
            )
        if options.get("failed_only") and options.get("journal") is None:
            raise TypeError(f"{self.binding.name}: failed_only runs what a journal has as failed; pass journal=, too")
        return Run(self, args, kwargs, Options(**options))

    def check(self) -> None:
        """Check now what a map would run into: `@opmap` does so when it decorates.

        Raises:
            ConfigError: the mode does not serve such a function.
        """
        pipeline = self.binding.known_pipeline
        if pipeline is not None:
            self.mode_for(pipeline.policy)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The function's own: an option of a map never takes an argument from it."""
        return {} if self.signature is None else self.signature.parameters

    def check_arguments(self, before: tuple[Any, ...], after: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Check once what all calls have in common, before anything is sent.

        Raises:
            TypeError: the function does not take these arguments.
        """
        kinds = {each.kind for each in self.parameters.values()}
        if self.signature is None or inspect.Parameter.VAR_KEYWORD in kinds:  # whose `bind` refuses too much
            return
        try:
            self.signature.bind(*before, None, *after, **kwargs)
        except TypeError as error:
            unknown = next((name for name in kwargs if name not in self.parameters), None)
            hint = "" if unknown is None else nearest(unknown, [*self.parameters, *OPTIONS])
            raise TypeError(f"{self.binding.name}, mapped over items, {error}{hint}") from None

    # Decisions

    def parallel(self, pipeline: Pipeline) -> ParallelPolicy:
        policy = pipeline.policy.parallel
        return policy if policy is not None and policy.enabled else ParallelPolicy()

    def mode_for(self, policy: Policy) -> str:
        """The mode in which a policy maps this function; "auto" is left open for a sync function.

        Raises:
            ConfigError: the mode cannot run this function, or is not available.
        """
        parallel = policy.active("parallel") or ParallelPolicy()
        mode = parallel.mode
        name, is_async = self.binding.name, self.binding.kind == "async"
        if self.binding.kind not in ("sync", "async"):
            raise ConfigError(
                f"{name} is a generator function and cannot be mapped: map a function that returns a value"
            )
        if is_async and parallel.executor is not None:
            from opero.parallel.workers.executors import shares_memory

            if shares_memory(parallel.executor):
                self.refuse_threads()
        if mode == "auto":
            return "async" if is_async else "auto"
        if is_async and mode in ("thread", "process"):
            raise ConfigError(
                f"{name} is an async function, which mode {mode!r} cannot run; use mode='async', or 'async_process' "
                "for event loops in worker processes"
            )
        if not is_async and mode in ("async", "async_process"):
            serves = "thread" if mode == "async" else "process"
            other = "process" if mode == "async" else "thread"
            raise ConfigError(
                f"{name} is a sync function, which mode {mode!r} cannot run; use mode={serves!r} or {other!r}"
            )
        check_cluster(policy, name)
        return mode

    def refuse_threads(self) -> None:
        """Refuse an executor of threads for an async function.

        Raises:
            ConfigError: it is one.
        """
        if self.binding.kind == "async":
            raise ConfigError(
                f"{self.binding.name} is an async function, which the threads of an executor cannot run; leave "
                "executor out for mode='async', or give an executor of processes, each of which runs an event loop"
            )

    def shared_kinds(self, pipeline: Pipeline) -> list[str]:
        """The policies whose state all workers would have to share."""
        return _shared_kinds(pipeline.policy)


def check_cluster(policy: Policy, name: str) -> None:
    """Check that the policy's mode, where it is a cluster's, is installed and can keep the other policies.

    Args:
        policy: the whole policy.
        name: what error messages begin with.

    Raises:
        MissingExtraError: the mode's extra is not installed.
        ConfigError: a rate limit, circuit breaker or bulkhead would have to be shared between machines.
    """
    parallel = policy.active("parallel")
    if parallel is None or parallel.mode not in CLUSTERS:
        return
    mode = parallel.mode
    if not is_installed(CLUSTERS[mode]):
        raise MissingExtraError(f"{name}: mode {mode!r} needs the extra {mode}: pip install 'opero[{mode}]'")
    if shared := _shared_kinds(policy):
        raise ConfigError(
            f"{name}: {' and '.join(shared)} cannot be shared with the machines of a cluster; leave it out, "
            "or use mode='process', whose workers share it on this machine"
        )


def _shared_kinds(policy: Policy) -> list[str]:
    return [kind for kind in ("rate_limit", "circuit_breaker", "bulkhead") if policy.active(kind) is not None]
