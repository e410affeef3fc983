"""Who works on the items of a run: in which mode, how many at a time, and made ready with what."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Literal

import opero.parallel
from opero.errors import ConfigError, OperoError, text_of
from opero.observe.logs import logger
from opero.parallel.tuning import PROCESSES
from opero.parallel.workers.work import Work
from opero.policies.policy import Policy
from opero.runtime.machine import cpu_limit, workers_that_fit
from opero.runtime.private_folder import private_folder
from opero.values import ItemCost

if TYPE_CHECKING:
    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.engine.run import Run
    from opero.parallel.transport.setup import Setup
    from opero.parallel.workers.base import Workers
    from opero.parallel.workers.remote import Pool
    from opero.runtime.hosts import Host

__all__ = ["Staff", "worker_count"]

BATCHES_A_WORKER = 4
LARGEST_BATCH = 1000
USUAL_BATCH = 100
"""Items in a batch where nobody says, and the number of items is not known."""
SAMPLE_SECONDS = 0.02
SAMPLE_ITEMS = 16
WORTH_PROCESSES = 0.5
"""Seconds of computing still to do, from which on starting worker processes pays."""
LONG = 0.005
"""Seconds of computing an item, from which on that is so where nobody knows how many there are."""


def worker_count(workers: int | str, mode: str) -> int:
    """How many items at a time: the number itself, or what suits the mode and what this process may use."""
    if isinstance(workers, int):
        return workers
    cores = cpu_limit()
    if mode == "async":
        return 100
    if mode in PROCESSES:
        return workers_that_fit(max(1, cores - 1) if mode == "process" else cores)
    return min(32, cores + 4)


class Staff:
    """Who works on the items of a run.

    Attributes:
        mode: of `ParallelPolicy`; "auto" until the first items have shown which suits.
        workers: how many, or "auto".
        batch_size: items a call; None: each call gets one item.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.mode = run.mapper.mode_for(run.pipeline.policy)
        self.workers: int | Literal["auto"] = run.policy.workers
        self.batch_size: int | None = None
        self.is_sampling = False
        self.inbox: Inbox

    async def hire(self, host: Host, inbox: Inbox, first: list[Any]) -> Workers:
        """Workers for a run that begins.

        Args:
            host: what the reader of the results may do to wait.
            inbox: where the reports go.
            first: the first item, where there is one.
        """
        self.inbox = inbox
        self._recall()
        self.batch_size = self._batch_size() if first and self.run.rule.applies(first[0]) else None
        return await self._first(host, first)

    def _recall(self) -> None:
        """Use what is known of the function from `tune`, or from an earlier map."""
        tuning, cost, left = self.run.binding.tuning, self.run.mapper.cost, self.run.source.left
        if self.run.policy.executor is not None:
            return
        if tuning is not None and self.run.policy.mode in ("auto", tuning.mode):
            is_auto = self.run.policy.mode == "auto"
            if is_auto and tuning.mode in PROCESSES and left is not None and tuning.seconds * left <= WORTH_PROCESSES:
                self.mode = "async" if self.run.binding.is_async else "thread"
                return
            self.mode = "thread" if tuning.mode == "sequential" else tuning.mode
            if self.run.policy.workers == "auto":
                self.workers = tuning.workers
        elif self.mode == "auto" and cost is not None:
            self.mode = self._suitable_mode(cost)

    @property
    def samples(self) -> bool:
        """Whether the first items show which mode suits them."""
        return self.mode == "auto" and self.run.policy.executor is None

    def _batch_size(self) -> int:
        if self.run.policy.batch_size is not None:
            return self.run.policy.batch_size
        left, tuning = self.run.source.left, self.run.binding.tuning
        workers = worker_count(self.workers, self.mode)
        if tuning is not None and tuning.batch_size is not None:
            return tuning.batch_size if left is None else max(1, min(tuning.batch_size, -(-left // workers)))
        if left is None:
            return USUAL_BATCH
        return max(1, min(LARGEST_BATCH, -(-left // (workers * BATCHES_A_WORKER))))

    async def _first(self, host: Host, first: list[Any]) -> Workers:
        if self.samples:
            return self._workers("inline", first)
        if self.run.policy.executor is None and self.mode in ("dask", "ray") and not self._is_nested:
            from opero.parallel.transport.setup import pickled_setup

            setup = pickled_setup(self._setup(), self.run.binding.name, first)
            return self._over(await host.offload(copy_context().run, self._cluster, setup))  # it may have to start
        return self._suitable_workers(first)

    @property
    def _is_nested(self) -> bool:
        return opero.parallel.is_worker or opero.parallel.is_in_worker.get()

    def _workers(self, mode: str, first: list[Any]) -> Workers:
        if self.run.policy.executor is not None and mode != "inline":
            return self._executor_workers(first)
        count = worker_count(self.workers, mode)
        if self.run.source.left is not None:
            count = max(1, min(count, self.run.source.left))
        in_processes = mode in PROCESSES or mode in ("dask", "ray")
        if in_processes and not self._is_nested:  # a map within a worker makes no processes of its own
            from opero.parallel.transport.setup import pickled_setup
            from opero.parallel.workers.processes import ProcessPool

            setup, name = self._setup(), self.run.binding.name
            return self._over(ProcessPool(setup, pickled_setup(setup, name, first), name, count))
        context = self._prepared()
        if self.run.binding.is_async:
            from opero.parallel.workers.event_loop import LoopWorkers

            count = self.run.policy.concurrency if in_processes else count
            return LoopWorkers(self._work(), count, self.inbox, context)  # type: ignore[arg-type]
        from opero.parallel.workers.threads import InlineWorkers, ThreadWorkers

        if mode == "inline" or in_processes:
            return InlineWorkers(self._work(), self.inbox, context)
        return ThreadWorkers(self._work(), count, self.inbox, context)

    def _prepared(self) -> Context:
        """The context for calls in this process, once it is made ready for them, as a worker process would be."""
        context = copy_context()
        if self.run.policy.initializer is not None:
            from opero.parallel.transport.setup import reference
            from opero.parallel.transport.worker import NotReady, initialize

            try:
                initialize(reference(self.run.policy.initializer), context)
            except NotReady as error:
                cause: Any = error.__cause__
                told = f"{self.run.binding.name}: {error}: {type(cause).__name__}: {text_of(cause)}"
                raise OperoError(told) from cause
        return context

    def _executor_workers(self, first: list[Any]) -> Workers:
        from opero.parallel.transport.setup import pickled_setup
        from opero.parallel.workers.executors import UserPool, shares_memory

        pool = UserPool(self.run.policy.executor, self.workers)
        try:
            if shares_memory(pool.executor):
                self.run.mapper.refuse_threads()
                self._prepared()
                pool.work = self._work()
            else:
                pool.setup = pickled_setup(self._setup(), self.run.binding.name, first)
        except BaseException:
            pool.close(())
            raise
        return self._over(pool, shares_memory=pool.work is not None)

    def _cluster(self, setup: bytes) -> Pool:
        if self.mode == "dask":
            from opero.parallel.workers.dask import DaskPool

            return DaskPool(self.run.policy.address, self.workers, setup)
        from opero.parallel.workers.ray import RayPool

        return RayPool(self.run.policy.address, self.workers, setup)

    def _over(self, pool: Pool, *, shares_memory: bool = False) -> Workers:
        from opero.parallel.workers.remote import RemoteWorkers

        return RemoteWorkers(
            pool,
            self.run.binding.name,
            self.inbox,
            self.run.binding.stats,
            shares_memory=shares_memory,
            concurrency=self.run.policy.concurrency if self.run.binding.is_async else 1,
            batch_size=self.batch_size or 1,
            retries=self.run.policy.worker_retries,
        )

    def _work(self) -> Work:
        return Work(
            self.run.binding,
            self.run.fixed,
            self.run.rule,
            self.batch_size,
            has_cache=self.run.pipeline.cache is not None,
            pipeline=self.run.pipeline,
        )

    def _setup(self) -> Setup:
        from opero.parallel.transport.context import CallContext
        from opero.parallel.transport.setup import Setup, reference

        kinds = ("retry", "timeout", "fallback", "rate_limit", "circuit_breaker", "bulkhead")
        limits = None
        if self.run.mapper.shared_kinds(self.run.pipeline):
            from opero.executors.state.sharing import share_limits

            limits = share_limits(self.run.pipeline.executors, self.run.binding.name, private_folder())
        initializer = self.run.policy.initializer
        return Setup(
            reference=reference(self.run.binding.function),
            policy=Policy(**{kind: getattr(self.run.pipeline.policy, kind) for kind in kinds}),
            fixed=self.run.fixed,
            position=self.run.mapper.position,
            batch=self.run.policy.batch,
            batch_size=self.batch_size,
            has_cache=self.run.pipeline.cache is not None,
            concurrency=self.run.policy.concurrency if self.run.binding.is_async else 1,
            initializer=None if initializer is None else reference(initializer),
            context=CallContext(),
            limits=limits,
        )

    def choose(self) -> None:
        """End the sample in the caller's thread, and choose the mode by whether it computed or waited."""
        if not self.is_sampling or self.run.window.under_way:
            return
        sample: Any = self.run.window.workers
        if sample.done < SAMPLE_ITEMS * (self.batch_size or 1) and sample.seconds < SAMPLE_SECONDS:
            return
        self.is_sampling = False
        if sample.done:
            self.run.mapper.cost = ItemCost(sample.seconds / sample.done, sample.computed / sample.done)
        self.mode = self._suitable_mode(self.run.mapper.cost or ItemCost(0, 0))
        if not self.run.window.is_over:
            self.run.window.workers = self._suitable_workers(self.run.source.first())

    def _suitable_mode(self, cost: ItemCost) -> str:
        left = self.run.source.left
        is_worth_it = cost.computed > LONG if left is None else cost.computed * left > WORTH_PROCESSES
        return "process" if cost.share > 1 / 2 and is_worth_it else "thread"

    def _suitable_workers(self, first: list[Any]) -> Workers:
        """Workers of the mode that suits; in threads, where the function cannot be sent to processes."""
        try:
            return self._workers(self.mode, first)
        except ConfigError as error:
            if self.mode not in PROCESSES or self.run.policy.mode != "auto":
                raise
            logger.info("%s would be mapped in processes, but: %s", self.run.binding.name, error)
            self.mode = "async" if self.run.binding.is_async else "thread"
            self.workers = self.run.policy.workers
            return self._workers(self.mode, first)
