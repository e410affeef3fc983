"""Worker selection: in which mode a map runs, with how many workers, and how they are set up."""

from __future__ import annotations

import sys
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Literal

import opero.parallel
from opero.errors import ConfigError, OperoError, describe
from opero.parallel.workers.chunk_runner import ChunkRunner
from opero.policies.policy import Policy
from opero.runtime.deadlines import current
from opero.runtime.log import log
from opero.runtime.machine import cpu_limit, workers_that_fit
from opero.values import ItemCost

if TYPE_CHECKING:
    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.engine.settings import MapSettings
    from opero.parallel.engine.source import Source
    from opero.parallel.engine.window import Window
    from opero.parallel.transport.setup import Setup
    from opero.parallel.workers.base import Workers
    from opero.parallel.workers.pool import Pool
    from opero.runtime.deadlines import Deadline
    from opero.runtime.hosts import Host

MOST_THREADS, MOST_TASKS = 64, 500
"""The most workers of a map whose number is found by what items take."""
PROCESSES = ("process", "async_process")
"""The modes whose workers are processes of this machine."""
CLUSTERS = ("dask", "ray")
BATCHES_PER_WORKER = 4
LARGEST_BATCH = 1000
DEFAULT_BATCH = 100
"""Items in a batch if the policy does not say and the number of items is unknown."""
SAMPLE_SECONDS = 0.02
SAMPLE_ITEMS = 16
WORTH_PROCESSES = 0.5
"""Seconds of computing left above which starting worker processes pays."""
LONG_ITEM = 0.005
"""Seconds of computing an item above which it pays if the number of items is unknown."""


def worker_count(workers: int | str, mode: str) -> int:
    """How many items run at once: the number itself, or what suits the mode and this machine."""
    if isinstance(workers, int):
        return workers
    if workers == "adaptive":
        return MOST_TASKS if mode == "async" else MOST_THREADS
    cores = cpu_limit()
    if mode == "async":
        return 100
    if mode in PROCESSES:
        return workers_that_fit(max(1, cores - 1) if mode == "process" else cores)
    return min(32, cores + 4)


def _is_daemonic() -> bool:
    """Whether this is a daemonic process of `multiprocessing` or Celery's billiard: those end without any cleanup, and
    run side by side already, so that they are not meant to have processes of their own."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.current_process().daemon


class WorkerSelection:
    """Selects the workers of one map.

    Args:
        settings: of the map.
        source: its items.

    Attributes:
        mode: of `ParallelPolicy`; "auto" until the first items have been measured.
        workers: how many, or "auto" or "adaptive".
        batch_size: items in one call; None: each call receives one item.
        is_sampling: the first items run in the caller's thread and are measured.
        deadline: after which no item begins; None without one.
    """

    def __init__(self, settings: MapSettings, source: Source) -> None:
        self.settings = settings
        self.source = source
        self.mode = settings.mode
        self.workers: int | Literal["auto", "adaptive"] = settings.policy.workers
        self.batch_size: int | None = None
        self.is_sampling = False
        self.deadline: Deadline | None = None
        self._inbox: Inbox

    async def start(self, host: Host, inbox: Inbox) -> Workers:
        """The workers with which the map starts.

        Args:
            host: how the reader of the results waits.
            inbox: where the reports go.
        """
        self._inbox = inbox
        settings, first = self.settings, self.source.first()
        self._apply_measurements()
        self.batch_size = self._batch_size() if first and settings.rule.applies(first[0]) else None
        self.is_sampling = self.mode == "auto" and settings.policy.executor is None
        if self.is_sampling:
            return self._workers("inline", first)
        if settings.policy.executor is None and self.mode in CLUSTERS and not self._is_nested:
            from opero.parallel.transport.setup import pickled_setup

            setup = pickled_setup(self._setup(), settings.name)
            return self._over(await host.offload(copy_context().run, self._cluster, setup))  # it may have to start
        return self._suitable_workers(first)

    def choose(self, window: Window) -> None:
        """Once enough items have been measured, continue with the workers that suit them."""
        if not self.is_sampling or window.under_way:
            return
        sample: Any = window.workers
        if sample.done < SAMPLE_ITEMS * (self.batch_size or 1) and sample.seconds < SAMPLE_SECONDS:
            return
        self.is_sampling = False
        cost = self.settings.cost or ItemCost(0, 0)
        if sample.done:
            cost = ItemCost(sample.seconds / sample.done, sample.computed / sample.done)
            self.settings.remember_cost(cost)
        self.mode = self._suitable_mode(cost)
        if not window.is_over:
            window.workers = self._suitable_workers(self.source.first())

    # Decisions

    def _apply_measurements(self) -> None:
        """Use what `tune` or an earlier map has measured."""
        settings, left = self.settings, self.source.left
        policy, tuning = settings.policy, settings.binding.tuning
        if policy.executor is not None:
            return
        if self.workers == "adaptive":
            tuning = None  # it says how to compute
        if tuning is not None and policy.mode in ("auto", tuning.mode):
            is_short = left is not None and tuning.seconds * left <= WORTH_PROCESSES
            if policy.mode == "auto" and tuning.mode in PROCESSES and is_short:
                self.mode = "async" if settings.binding.is_async else "thread"
                return
            self.mode = "thread" if tuning.mode == "sequential" else tuning.mode
            if policy.workers == "auto":
                self.workers = tuning.workers
        elif self.mode == "auto" and settings.cost is not None:
            self.mode = self._suitable_mode(settings.cost)

    def _batch_size(self) -> int:
        size, tuning, left = self.settings.policy.batch_size, self.settings.binding.tuning, self.source.left
        if size is not None:
            return size
        workers = worker_count("auto" if self.workers == "adaptive" else self.workers, self.mode)
        if tuning is not None and tuning.batch_size is not None:
            return tuning.batch_size if left is None else max(1, min(tuning.batch_size, -(-left // workers)))
        if left is None:
            return DEFAULT_BATCH
        return max(1, min(LARGEST_BATCH, -(-left // (workers * BATCHES_PER_WORKER))))

    def _suitable_mode(self, cost: ItemCost) -> str:
        if self.workers == "adaptive":  # for a service that items call
            return "thread"
        left = self.source.left
        is_worth_it = cost.computed > LONG_ITEM if left is None else cost.computed * left > WORTH_PROCESSES
        return "process" if cost.share > 1 / 2 and is_worth_it else "thread"

    @property
    def _is_nested(self) -> bool:
        """Whether a worker runs this map: it starts no processes of its own."""
        return opero.parallel.is_worker or opero.parallel.is_in_worker.get()

    # Workers

    def _suitable_workers(self, first: list[Any]) -> Workers:
        """Workers of the selected mode; threads if mode "auto" selected processes and the function cannot be sent."""
        settings = self.settings
        if self.mode in PROCESSES and settings.policy.executor is None and not self._is_nested and _is_daemonic():
            self._leave_processes()
            text = "%s would be mapped in processes, but this process is daemonic and must not have any: in mode %s"
            log("map_in_daemon", text, settings.name, self.mode, about=settings.binding.stats, mode=self.mode)
        try:
            return self._workers(self.mode, first)
        except ConfigError as error:
            if self.mode not in PROCESSES or settings.policy.mode != "auto":
                raise
            self._leave_processes()
            text = "%s would be mapped in processes, but: %s"
            log("map_mode_changed", text, settings.name, error, mode=self.mode, error=error)
            return self._workers(self.mode, first)

    def _leave_processes(self) -> None:
        """Continue in the mode that suits the function best without processes."""
        self.mode = "async" if self.settings.binding.is_async else "thread"
        self.workers = self.settings.policy.workers

    def _workers(self, mode: str, first: list[Any]) -> Workers:
        settings, left = self.settings, self.source.left
        if settings.policy.executor is not None and mode != "inline":
            return self._executor_workers()
        count = usual = self._admitted(worker_count(self.workers, mode))
        if left is not None:
            count = max(1, min(count, left))
        in_processes = mode in PROCESSES or mode in CLUSTERS
        if in_processes and not self._is_nested:
            from opero.parallel.transport.program_state import worker_environment
            from opero.parallel.transport.setup import packed_setup
            from opero.parallel.workers.processes import ProcessPool

            if first and settings.policy.mode == "auto":
                self._check_sendable(first[0])
            setup, environment = self._setup(), worker_environment(settings.policy.inner_threads, usual)
            packed = packed_setup(setup, settings.name)
            return self._over(ProcessPool(setup, packed, settings.name, count, environment))
        context = self._initialized()
        if self.workers == "adaptive" and mode != "inline":
            return self._adaptive_workers(count, context)
        if settings.binding.is_async:
            from opero.parallel.workers.event_loop import LoopWorkers

            tasks = settings.policy.concurrency if in_processes else count
            return LoopWorkers(self._work(), tasks, self._inbox, context)  # type: ignore[arg-type]
        from opero.parallel.workers.threads import InlineWorkers, ThreadWorkers

        if mode == "inline" or in_processes:
            return InlineWorkers(self._work(), self._inbox, context)
        return ThreadWorkers(self._work(), count, self._inbox, context)

    def _admitted(self, count: int) -> int:
        """As many workers as that; where opero chooses their number, no more than a bulkhead without a queue admits."""
        bulkhead = self.settings.pipeline.policy.active("bulkhead")
        if bulkhead is None or bulkhead.shadow or bulkhead.max_wait != 0 or self.settings.policy.workers != "auto":
            return count
        return min(count, int(bulkhead.most_concurrent))

    def _adaptive_workers(self, most: int, context: Context) -> Workers:
        from opero.parallel.workers.adaptive import AdaptiveLoopWorkers, AdaptiveThreadWorkers, WorkerLimit

        binding, inbox = self.settings.binding, self._inbox
        limit = WorkerLimit(most, binding.clock.monotonic, binding.stats)
        if binding.is_async:
            return AdaptiveLoopWorkers(self._work(), limit, inbox, context)  # type: ignore[arg-type]
        return AdaptiveThreadWorkers(self._work(), limit, inbox, context)

    def _check_sendable(self, item: Any) -> None:
        """Check that an item can be pickled: if not, mode "auto" has other workers to choose from.

        Raises:
            ConfigError: it cannot.
        """
        from opero.parallel.transport.pickling import pickled

        pickled(item, f"the first item of {self.settings.name}")

    def _executor_workers(self) -> Workers:
        from opero.parallel.workers.executors import UserPool, refuse_threads

        settings = self.settings
        pool = UserPool(settings.policy.executor, self.workers)
        try:
            if pool.shares_memory:
                if settings.binding.is_async:
                    refuse_threads(pool.executor, settings.name)
                pool.context = self._initialized()
                pool.work = self._work()
            else:
                pool.pack(self._setup(), settings.name)
        except BaseException:
            pool.close(())
            raise
        return self._over(pool)

    def _cluster(self, setup: bytes) -> Pool:
        if self.mode == "dask":
            from opero.parallel.workers.dask import DaskPool

            return DaskPool(self.settings.policy.address, self.workers, setup)
        from opero.parallel.workers.ray import RayPool

        return RayPool(self.settings.policy.address, self.workers, setup)

    def _over(self, pool: Pool) -> Workers:
        from opero.parallel.workers.remote import RemoteWorkers

        return RemoteWorkers(pool, self.settings, self._inbox, self.batch_size or 1)

    # What they are given

    def _context(self) -> Context:
        """The context of the caller, with the deadline of the map."""
        context = copy_context()
        if self.deadline is not None:
            context.run(current.set, self.deadline)
        return context

    def _initialized(self) -> Context:
        """The context for calls in this process, after the initializer has run in it."""
        context, settings = self._context(), self.settings
        if settings.policy.initializer is not None:
            from opero.parallel.transport.setup import reference
            from opero.parallel.transport.worker import NotReady, initialize

            try:
                initialize(reference(settings.policy.initializer), context)
            except NotReady as error:
                cause: Any = error.__cause__
                text = f"{settings.name}: {error}: {describe(cause)}"
                raise OperoError(text) from cause
        return context

    def _work(self) -> ChunkRunner:
        settings = self.settings
        return ChunkRunner(
            settings.binding,
            settings.fixed,
            settings.rule,
            self.batch_size,
            has_cache=settings.pipeline.cache is not None,
            pipeline=settings.pipeline,
        )

    def _setup(self) -> Setup:
        from opero.parallel.transport.context import CallContext
        from opero.parallel.transport.setup import Setup, reference

        settings, pipeline = self.settings, self.settings.pipeline
        around = ("priority", "retry", "timeout", "fallback", "failures")
        kinds = (*around, "hedge", "circuit_breaker", "throttle", "rate_limit", "bulkhead")
        policies = {kind: getattr(pipeline.policy, kind) for kind in kinds}
        limits = None
        if settings.shares_state:
            from opero.executors.state.sharing import share_limits, stated_in

            limits = share_limits(pipeline.executors, settings.name)
            policies = stated_in(pipeline.executors, policies)
        initializer = settings.policy.initializer
        return Setup(
            reference=reference(settings.binding.function),
            policy=Policy(**policies),
            fixed=settings.fixed,
            position=settings.position,
            batch=settings.policy.batch,
            batch_size=self.batch_size,
            has_cache=pipeline.cache is not None,
            concurrency=settings.concurrency,
            initializer=None if initializer is None else reference(initializer),
            context=self._context().run(CallContext),
            limits=limits,
            function=settings.binding.stats.function,
            profile=settings.binding.stats.policy,
        )
