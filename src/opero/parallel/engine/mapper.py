"""Turns a function of one item into a function of many: what users call, and the mode that runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opero.binding.fit import check_mode
from opero.errors import ConfigError, MissingExtraError
from opero.parallel.engine.arguments import check_fixed, taken_items
from opero.parallel.engine.batching import BatchRule
from opero.parallel.engine.settings import FixedArguments, MapSettings, Options
from opero.policies.names import is_installed
from opero.policies.parallel import ParallelPolicy
from opero.policies.scope import scope_by
from opero.runtime.functions import is_async_function, signature_of
from opero.runtime.tracebacks import TRIMMED

if TYPE_CHECKING:
    from opero.binding.binding import Binding
    from opero.binding.invocation import Pipeline
    from opero.parallel.engine.blocks import Piece
    from opero.parallel.engine.run import Run
    from opero.policies.policy import Policy
    from opero.values import ItemCost

CLUSTERS = {"dask": "distributed", "ray": "ray"}
"""The module that each cluster mode needs, from the extra of its name."""
OPTIONS = ("journal", "failed_only", "progress")
"""Keyword arguments of `map` and its like that are options of the map, unless the function has such a parameter."""


class Mapper:
    """Maps one bound function.

    Args:
        binding: the function under its policy, whose `parallel` part says how to map.

    Attributes:
        cost: what an item costs, as measured by the last map in mode "auto".
    """

    __slots__ = ("_rules", "_signature", "binding", "cost")

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self.cost: ItemCost | None = None
        self._rules: dict[bool | None, BatchRule] | None = None
        self._signature: inspect.Signature | None = None

    # What users call

    def map(self, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the results of all items: `(items, ...) -> list`."""
        with TRIMMED:
            return self._run(args, kwargs).run()

    async def map_async(self, /, *args: Any, **kwargs: Any) -> list[Any]:
        """As `map`, for an async function."""
        with TRIMMED:
            return await self._run(args, kwargs).run_async()

    def function(self) -> Callable[..., Any]:
        """Return `map`, or `map_async` for an async function, as a function of its own."""

        def mapped(*args: Any, **kwargs: Any) -> list[Any]:
            with TRIMMED:
                return self._run(args, kwargs).run()

        async def mapped_async(*args: Any, **kwargs: Any) -> list[Any]:
            with TRIMMED:
                return await self._run(args, kwargs).run_async()

        return mapped_async if self.binding.kind == "async" else mapped

    def stream(self, /, *args: Any, **kwargs: Any) -> Any:
        """Yield results as they finish; an async iterator for an async function.

        Items are read ahead of the reader by no more than `window`.
        """
        return self._streamed(self._run(args, kwargs))

    def starmap(self, /, *args: Any, **kwargs: Any) -> list[Any]:
        """As `map`, for items that are tuples of arguments: the results of `f(*item)`."""
        with TRIMMED:
            return self._run(args, kwargs, spreads=True).run()

    async def starmap_async(self, /, *args: Any, **kwargs: Any) -> list[Any]:
        """As `starmap`, for an async function."""
        with TRIMMED:
            return await self._run(args, kwargs, spreads=True).run_async()

    def starstream(self, /, *args: Any, **kwargs: Any) -> Any:
        """As `stream`, for items that are tuples of arguments."""
        return self._streamed(self._run(args, kwargs, spreads=True))

    def _streamed(self, run: Run) -> Any:
        return run.stream_async() if self.binding.kind == "async" else run.stream()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, spreads: bool = False) -> Run:
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
                f"{self.binding.name}: the progress callback {progress!r:.60} is async and would never be awaited; "
                "pass a plain function"
            )
        if options.get("failed_only") and options.get("journal") is None:
            raise TypeError(
                f"{self.binding.name}: failed_only runs what a journal records as failed; pass journal= too"
            )
        return self.new_run(args, kwargs, Options(**options), spreads=spreads)

    def new_run(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Options,
        consume: Callable[[Piece], Iterable[Any]] | None = None,
        *,
        spreads: bool = False,
    ) -> Run:
        """A run over the items among these arguments.

        Args:
            args, kwargs: the arguments of the call.
            options: of the call.
            consume: receives each finished piece of a stream, and returns what the reader of the stream gets of it.
                Default: its results.
            spreads: each item is a tuple of arguments.

        Raises:
            TypeError: there are no items that can be mapped, or the function does not accept the other arguments.
            ConfigError: the mode cannot run the function.
        """
        from opero.parallel.engine.run import Run

        pipeline, position = self.binding.resolved(), self.position
        policy, others = self.parallel(pipeline), dict(kwargs)
        if spreads and policy.batch:
            raise ConfigError(
                f"{self.binding.name}: starmap calls it once for each item, and batch=True with lists of items; use map"
            )
        rule = self._rule(False if spreads else policy.batch)
        items = taken_items(self, args, others, None if spreads else rule)
        fixed = FixedArguments(args[:position], args[position + 1 :], others, spreads)
        check_fixed(self, fixed, items, OPTIONS)
        settings = MapSettings(
            name=self.binding.name,
            binding=self.binding,
            pipeline=pipeline,
            policy=policy,
            mode=self.mode_for(pipeline.policy),
            position=position,
            rule=rule,
            fixed=fixed,
            options=options,
            shares_state=_shares_state(pipeline),
            cost=self.cost,
            remember_cost=lambda cost: setattr(self, "cost", cost),
        )
        return Run(settings, items, consume)

    def _rule(self, forced: bool | None) -> BatchRule:
        if self._rules is None:
            self._rules = {}
        if forced not in self._rules:
            self._rules[forced] = BatchRule(self.binding.function, self.position, forced)
        return self._rules[forced]

    def check(self) -> None:
        """Check what can be checked before the first map.

        Raises:
            ConfigError: the mode cannot run the function.
        """
        policy = self.binding.known_policy
        if policy is not None:
            self.mode_for(policy)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The function's own: an option of a map never shadows one."""
        return {} if self.signature is None else self.signature.parameters

    @property
    def position(self) -> int:
        """The position of the items among the arguments."""
        return 1 if self.binding.is_method else 0

    @property
    def signature(self) -> inspect.Signature | None:
        """The function's signature; None if it has none."""
        if self._signature is None:
            self._signature = signature_of(self.binding.function)
        return self._signature

    # Decisions

    def parallel(self, pipeline: Pipeline) -> ParallelPolicy:
        policy = pipeline.policy.parallel
        return policy if policy is not None and policy.enabled else ParallelPolicy()

    def mode_for(self, policy: Policy) -> str:
        """The mode in which a policy maps this function. "auto" stays for a sync function: the first items decide.

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
            from opero.parallel.workers.executors import refuse_threads

            refuse_threads(parallel.executor, name)
        keyed = [kind for kind in _shared_kinds(policy) if scope_by(policy.active(kind)) is not None]
        bulkhead = policy.active("bulkhead")
        is_adaptive = bulkhead is not None and bulkhead.is_adaptive
        if mode == "auto":
            return "async" if is_async else "thread" if keyed or is_adaptive else "auto"
        if keyed and mode not in ("thread", "async"):
            raise ConfigError(
                f"{name}: {' and '.join(keyed)} cannot be kept for each value of an argument (scope) in mode {mode!r}, "
                "whose workers are other processes; use mode='thread', mode='async', or another scope"
            )
        if is_adaptive and mode not in ("thread", "async"):
            raise ConfigError(
                f"{name}: max_concurrent: adaptive finds its limit by the calls of one process, so the workers of mode "
                f"{mode!r} cannot share it; use mode='thread', mode='async', or set a number"
            )
        check_mode(mode, name, is_async=is_async)
        check_cluster(policy, name)
        cache = policy.active("cache")
        if mode in ("async_process", "dask", "ray") and cache is not None and is_async_function(cache.cache_if):
            raise ConfigError(
                f"{name}: cache.cache_if is async, and is awaited in this process only; use mode='async', or a sync "
                "cache_if"
            )
        return mode


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
    if shared := [kind for kind in _shared_kinds(policy) if not _is_in_network(policy.active(kind))]:
        raise ConfigError(
            f"{name}: {' and '.join(shared)} cannot be shared with the machines of a cluster; leave it out, "
            "or use mode='process', whose workers share it on this machine, or share it with share: redis"
        )


def _is_in_network(policy: Any) -> bool:
    return getattr(policy, "share", "process") == "redis"


def _shared_kinds(policy: Policy) -> list[str]:
    return [kind for kind in ("rate_limit", "circuit_breaker", "bulkhead") if policy.active(kind) is not None]


def _shares_state(pipeline: Pipeline) -> bool:
    """Return whether worker processes share the limits, a retry budget, or what is remembered of fallback values.

    Of the last two each worker of a cluster has its own.
    """
    parallel = pipeline.policy.active("parallel")
    is_in_cluster = parallel is not None and parallel.mode in CLUSTERS
    has_more = "values" in pipeline.executors or "retry_budget" in pipeline.executors
    return bool(_shared_kinds(pipeline.policy)) or (has_more and not is_in_cluster)
