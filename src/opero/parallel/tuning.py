"""Measures on a sample in which mode a function is mapped best: sequentially, in threads, processes, or tasks."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, Failure, MapError, describe
from opero.parallel.engine.batching import BatchRule
from opero.parallel.workers.choose import PROCESSES
from opero.policies.parallel import ParallelPolicy
from opero.policies.policy import Policy
from opero.runtime.functions import kind_of, short_name
from opero.runtime.hosts import run_blocking
from opero.runtime.log import log
from opero.runtime.machine import cpu_limit, queued
from opero.values import Measurement, Tuning

if TYPE_CHECKING:
    from opero.binding.binding import Binding

CPU_BOUND, IO_BOUND = 0.8, 0.2
"""Fractions of its time spent computing from which, and up to which, a function counts as one or the other."""
GOOD_ENOUGH = 0.9
"""Fraction of the best speed at which fewer workers are recommended."""
THREADS = (2, 4, 8, 16, 32, 64)
TASKS = (10, 30, 100, 300)
BATCHES = (1, 10, 100, 1000)
MODES: dict[str, tuple[str, ...]] = {"sync": ("thread", "process"), "async": ("async", "async_process")}
USUAL = {"thread": 32, "async": 100}
"""Workers that are recommended if there was no time to measure."""
MOST_ITEMS = 5000
"""Items that are taken from a sample."""
MOST_CALLS = 50_000
"""Calls of one measurement."""
PARTS = 10
"""A measurement takes this fraction (1 / PARTS) of the available time, unless one call takes longer."""


def tune(func: Callable[..., Any], sample: Iterable[Any], *args: Any, seconds: float = 3.0, **kwargs: Any) -> Tuning:
    """Measure how a function is mapped best, by running it repeatedly on a sample of its items.

    CPU time shows whether a function waits or computes. If it has a policy, only the function itself runs: its cache,
    retries, limits and circuit breaker do not. Maps of a bound function with
    `mode="auto"`, or with the mode that has been found best and `workers="auto"`, use the result.

    Args:
        func: the function, bound or not; an async function runs in an event loop of its own.
        sample: some of its items, as varied as all of them; items may be used several times.
        args, kwargs: other arguments of every call.
        seconds: about how long it may take in all. What there is no time for is estimated. Default 3.

    Raises:
        ValueError: the sample is empty.
        TypeError: `func` is not a function of items, or the sample is not an iterable of them.
        ConfigError: it is a generator function.
        MapError: an item of the sample failed.
        RuntimeError: the function is async and an event loop is running: use a thread (`asyncio.to_thread`).
    """
    return _tuned(_Tuner(func, args, kwargs, seconds), sample)


def tune_without_failures(
    func: Callable[..., Any], sample: Iterable[Any], *, seconds: float
) -> tuple[Tuning, Sequence[Failure]]:
    """As `tune`, but leave out items that fail, and return their failures as well.

    Raises:
        MapError: all items failed.
    """
    tuner = _Tuner(func, (), {}, seconds, skips=True)
    return _tuned(tuner, sample), tuner.failures


def _tuned(tuner: _Tuner, sample: Iterable[Any]) -> Tuning:
    if isinstance(sample, str | bytes | bytearray) or not isinstance(sample, Iterable):
        raise TypeError(f"tune: the sample of {tuner.name} is {sample!r:.60}; pass a list of some of its items")
    items = list(itertools.islice(sample, MOST_ITEMS))
    if not items:
        raise ValueError(f"tune: the sample for {tuner.name} is empty; pass some items")
    tuning = tuner.tune(items)
    if tuner.binding is not None:
        tuner.binding.tuning = tuning
    log("map_tuned", "%s", tuning)
    return tuning


def _nothing(_: int) -> None:
    """Runs in worker processes until all have started."""


class _Tuner:
    def __init__(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float, *, skips: bool = False
    ) -> None:
        if not callable(func):
            kind = type(func).__name__
            raise TypeError(
                f"tune: got a value of type {kind}, not a function; pass the function, and a sample of its items"
            )
        if seconds <= 0:
            raise ValueError(f"tune: seconds={seconds:g} leaves no time to measure anything; pass more than 0")
        self.binding: Binding | None = getattr(func, "binding", None)
        self.function = func if self.binding is None else self.binding.function
        self.name = short_name(self.function)
        self.kind = kind_of(self.function)
        if self.kind not in MODES:
            raise ConfigError(
                f"{self.name} is a generator function and cannot be mapped: tune a function that returns a value"
            )
        self.before: tuple[Any, ...] = ()
        self.policy = ParallelPolicy()
        if self.binding is not None:
            self.policy = self.binding.policy.parallel or self.policy
            if self.binding.is_method:
                if not hasattr(func, "__self__"):
                    raise TypeError(
                        f"tune: {self.name} is a method and takes an instance first; tune it of one: "
                        f"tune(instance.{self.function.__name__}, sample)"
                    )
                self.before = (func.__self__,)
        if self.kind == "async" and _is_loop_running():
            raise RuntimeError(
                f"tune: {self.name} is async and would be run in an event loop of its own, but one is running here; "
                "use await asyncio.to_thread(opero.tune, ...)"
            )
        self.args = args
        self.kwargs = kwargs
        self.budget = seconds
        self.ends = time.perf_counter() + seconds
        self.skips = skips
        self.failures: list[Failure] = []
        self.items: list[Any] = []
        self.in_batches = False
        self.batch_size: int | None = None
        self.measurements: list[Measurement] = []
        self.each = 0.0
        self.share = 0.0
        self.runner: Any = None

    def tune(self, items: list[Any]) -> Tuning:
        self.items = items
        self.in_batches = BatchRule(self.function, len(self.before), self.policy.batch).applies(items[0])
        if self.kind == "sync":
            return self._tune()
        with asyncio.Runner() as self.runner:
            return self._tune()

    def _tune(self) -> Tuning:
        plain = self._sequential()
        if self.in_batches:
            plain = self._batches(plain)
        waits, computes = self.share <= IO_BOUND, self.share >= CPU_BOUND
        here, beside = MODES[self.kind]
        tried = [plain]
        can_be_sent = not waits and cpu_limit() > 1 and self._can_be_sent()
        if can_be_sent:
            tried += self._measured(beside, (cpu_limit(),))
        tried += self._measured(here, self._counts())
        if len(tried) == 1 and not (computes and not can_be_sent):
            tried.append(self._estimate(beside if computes else here))
        best = max(tried, key=lambda each: each.rate)
        tried.sort(key=lambda each: (each.workers, each.mode in PROCESSES))  # modes that send nothing first
        chosen = next(each for each in tried if each.rate >= GOOD_ENOUGH * best.rate)
        return Tuning(
            function=self.name,
            bound_by="cpu" if computes else "io" if waits else "both",
            mode="async" if chosen is plain and self.kind == "async" else chosen.mode,
            workers=chosen.workers,
            batch_size=self.batch_size,
            gain=chosen.rate / plain.rate,
            seconds=1 / plain.rate,
            measurements=tuple(self.measurements),
        )

    # Selecting measurements

    def _counts(self) -> list[int]:
        """Numbers of threads or tasks to try: beyond what the processors can serve, more are no faster."""
        processors = cpu_limit() if self.kind == "sync" else 1
        most = processors / self.share if self.share else math.inf
        if self.share >= CPU_BOUND:
            return [processors] if processors > 1 else []
        counts = THREADS if self.kind == "sync" else TASKS
        return [count for place, count in enumerate(counts) if not place or counts[place - 1] < most]

    def _batches(self, best: Measurement) -> Measurement:
        """Measure larger and larger batches, sequentially. None is larger than the sample: no item is in one twice."""
        for size in dict.fromkeys(min(size, len(self.items)) for size in BATCHES[1:]):
            if size * self.each > self._left / 2:
                break
            self.batch_size = size
            measured = self._sequential()
            if measured.rate < best.rate / GOOD_ENOUGH:
                break
            best = measured
        self.batch_size = best.batch_size
        self.each, self.share = 1 / best.rate, best.cpu
        return best

    def _measured(self, mode: str, counts: Sequence[int]) -> list[Measurement]:
        """Measure more and more workers while that helps; in fewer steps if there is little time."""
        step = max(self.budget / PARTS, self._lasts(mode, max(counts, default=1), 1))
        most = int(self._left / step)
        if most < len(counts):
            counts = sorted({counts[-1 - place * len(counts) // most] for place in range(most)})
        measured: list[Measurement] = []
        for count in counts:
            if self._lasts(mode, count, 1) > self._left:
                break
            measured.append(self._map(mode, count))
            enough = GOOD_ENOUGH * max(each.rate for each in measured)
            if all(each.rate < enough for each in measured[-2:]):  # a single one may be slow by chance
                break
        return measured

    def _lasts(self, mode: str, workers: int, rounds: float) -> float:
        """Seconds that that many calls for each worker take, if threads compute one after another."""
        processors = cpu_limit() if mode in PROCESSES else 1
        unit = self.each * (self.batch_size or 1)
        return rounds * max(unit, workers * unit * self.share / processors)

    def _estimate(self, mode: str) -> Measurement:
        """An estimate, if there was no time to measure."""
        workers = cpu_limit() if mode in PROCESSES else USUAL[mode]
        most = cpu_limit() / self.share if self.share else math.inf
        return Measurement(mode, workers, min(workers, most) / self.each, self.share, self.batch_size)

    @property
    def _left(self) -> float:
        return max(0.0, self.ends - time.perf_counter())

    # Measuring

    def _can_be_sent(self) -> bool:
        """Whether the function and its arguments can be sent to processes."""
        from opero.parallel.transport.pickling import pickled
        from opero.parallel.transport.setup import reference

        try:
            pickled(reference(self.function), self.name)
            pickled((self.before, self.args, self.kwargs), f"the arguments of {self.name}")
            pickled(self.items[0], f"the first item of {self.name}")
        except ConfigError as error:
            log("map_not_tuned", "%s is not tuned in processes: %s", self.name, error, error=error)
            return False
        return True

    def _map(self, mode: str, count: int) -> Measurement:
        if mode in PROCESSES:
            self._start_processes(mode, count)
        bound = self._bound(self.function, mode, count)
        rounds = self.budget / PARTS / max(self._lasts(mode, count, 1), 1e-9)
        calls = max(count, min(int(rounds * count), MOST_CALLS))
        items = list(itertools.islice(itertools.cycle(self.items), calls * (self.batch_size or 1)))
        started, computed = time.perf_counter(), time.process_time()
        self._run(bound, items)
        seconds, computed = time.perf_counter() - started, time.process_time() - computed
        return self._add(Measurement(mode, count, len(items) / seconds, computed / seconds, self.batch_size))

    def _start_processes(self, mode: str, count: int) -> None:
        """Start the workers; with the function itself, if that is quick."""
        if self._lasts(mode, count, 2) < self.budget / PARTS:
            items = itertools.islice(itertools.cycle(self.items), 2 * count * (self.batch_size or 1))
            self._run(self._bound(self.function, mode, count), list(items))
        else:
            self._bound(_nothing, "process", count, plain=True).map(range(2 * count))

    def _bound(self, function: Any, mode: str, count: int, *, plain: bool = False) -> Any:
        ways: dict[str, Any] = {"mode": mode, "workers": count, "progress": False}
        if not plain:
            ways["batch"] = self.in_batches
            ways["batch_size"] = self.batch_size
            ways["initializer"] = self.policy.initializer
            ways["concurrency"] = self.policy.concurrency
            ways["on_error"] = "return" if self.skips else "raise"
        return Policy(parallel=ParallelPolicy(**ways)).apply(function)

    def _run(self, bound: Any, items: list[Any]) -> None:
        found = bound.map(*self.before, items, *self.args, **self.kwargs)
        if self.runner is not None:
            self.runner.run(found)

    def _add(self, measurement: Measurement) -> Measurement:
        self.measurements.append(measurement)
        return measurement

    def _sequential(self) -> Measurement:
        """Measure one call after another, for a part of the time. The first is to warm up, if it is short."""
        self.batch_size = (self.batch_size or 1) if self.in_batches else None
        coroutine = self._calls(time.perf_counter, time.thread_time)
        done, seconds, computed, waited = run_blocking(coroutine) if self.runner is None else self.runner.run(coroutine)
        seconds = max(seconds, 1e-9)
        self.each = seconds / done
        self.share = min(1.0, computed / max(seconds - waited, 1e-9))
        return self._add(Measurement("sequential", 1, done / seconds, self.share, self.batch_size))

    async def _calls(self, now: Callable[[], float], cpu: Callable[[], float]) -> tuple[int, float, float, float]:
        """The number of items, and seconds of time, of computing, and of waiting for a processor."""
        size, most = self.batch_size, self.budget / PARTS
        indices = itertools.cycle(range(0, len(self.items), size or 1))
        done, started, computed, waited = 0, now(), cpu(), queued()
        is_warm = False
        failed: set[int] = set()
        for index in itertools.islice(indices, MOST_CALLS):
            if index in failed:
                continue
            argument = self.items[index] if size is None else self.items[index : index + size]
            try:
                found = self.function(*self.before, argument, *self.args, **self.kwargs)
                if self.runner is not None:
                    await found
            except Exception as error:
                failure = Failure(index, argument, error)
                failed.add(index)
                if self.skips and len(failed) * (size or 1) < len(self.items):
                    self.failures.append(failure)
                    continue
                raise MapError(
                    f"tune: {self.name} failed with item {index} of the sample: {describe(error)}",
                    {},
                    [failure],
                ) from error
            done += 1 if size is None else len(argument)
            if now() - started > most:
                break
            if not is_warm:
                is_warm = True
                done, started, computed, waited = 0, now(), cpu(), queued()
        left_out = {position for index in failed for position in range(index, index + (size or 1))}
        self.items = [item for position, item in enumerate(self.items) if position not in left_out]
        return done, now() - started, cpu() - computed, queued() - waited


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
