"""Which mode suits a function: measured on a sample, sequentially, in threads, in processes, in an event loop."""

from __future__ import annotations

import asyncio
import itertools
import time
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from opero.errors import ConfigError, MapError
from opero.logs import logger
from opero.parallel.batch import BatchRule
from opero.parallel.machine import cpu_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Cost", "Measurement", "Tuning", "tune"]

CPU_BOUND, IO_BOUND = 0.8, 0.2
"""Parts of its time that a function computes, from which on and up to which it counts as the one or the other."""
GOOD_ENOUGH = 0.9
"""Part of the best speed at which fewer workers are recommended."""
THREADS = (2, 4, 8, 16, 32, 64)
TASKS = (10, 30, 100, 300)
BATCHES = (1, 10, 100, 1000)
MODES: dict[str, tuple[str, ...]] = {"sync": ("thread", "process"), "async": ("async", "async_process")}
MOST_ITEMS = 5000


@dataclass(frozen=True, slots=True)
class Cost:
    """What an item of a function costs, as far as it was measured.

    Attributes:
        seconds: of time.
        computed: of that, seconds of computing.
    """

    seconds: float
    computed: float

    @property
    def share(self) -> float:
        """The part of its time that it computes."""
        return min(1.0, self.computed / self.seconds) if self.seconds > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way to run the sample.

    Attributes:
        mode: "sequential" or a mode of `ParallelPolicy`.
        workers: items at a time.
        rate: items a second.
        cpu: seconds of computing in this process for a second of time.
        batch_size: items a call, where calls get lists.
    """

    mode: str
    workers: int
    rate: float
    cpu: float
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `tune` has found out.

    Attributes:
        function: its name.
        bound_by: what its time goes into: "cpu", "io" or "both".
        mode: the mode to use; "sequential": nothing is faster than one after the other.
        workers: how many.
        batch_size: items a call, where calls get lists; else None.
        gain: how many times faster that is than one item after the other.
        seconds: of time, for an item.
        measurements: all that was measured.
    """

    function: str
    bound_by: Literal["cpu", "io", "both"]
    mode: str
    workers: int
    batch_size: int | None
    gain: float
    seconds: float
    measurements: tuple[Measurement, ...] = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of `@opmap`."""
        options: dict[str, Any] = {
            "mode": "thread" if self.mode == "sequential" else self.mode,
            "workers": self.workers,
        }
        return options if self.batch_size is None else {**options, "batch_size": self.batch_size}

    def __str__(self) -> str:
        what = {"cpu": "computes", "io": "waits", "both": "computes and waits"}[self.bound_by]
        lines = [
            (
                f"{self.function} {what} ({self.seconds * 1000:.3g} ms an item): "
                f"mode={self.mode!r}, workers={self.workers}"
                f"{f', batch_size={self.batch_size}' if self.batch_size else ''}, {self.gain:.1f} times as fast"
            )
        ]
        for each in self.measurements:
            batch = f", batches of {each.batch_size}" if each.batch_size else ""
            lines.append(
                f"  {each.mode:14}{each.workers:4} at a time{batch}: {each.rate:10,.1f}/s, CPU {each.cpu:4.0%}"
            )
        return "\n".join(lines)


def tune(func: Callable[..., Any], sample: Iterable[Any], *args: Any, seconds: float = 3.0, **kwargs: Any) -> Tuning:
    """Find out how a function is best mapped, by running it on a sample of its items, again and again.

    A function that waits is told from one that computes by its CPU time. Its cache, its limits and its breaker, if it
    has a policy, stay out of it. Maps of a bound function with `mode="auto"` and `workers="auto"` use the result.

    Args:
        func: the function, bound or not; an async one is run in an event loop of its own.
        sample: some of its items, as different as they are; items may be used several times.
        args, kwargs: further arguments of every call.
        seconds: about how long that may take in all. Default 3.

    Raises:
        ValueError: the sample is empty.
        MapError: an item of the sample failed.
        RuntimeError: of an async function, where an event loop is running: use a thread (`asyncio.to_thread`).
    """
    items = list(itertools.islice(sample, MOST_ITEMS))
    binding = getattr(func, "binding", None)
    function = binding.function if binding is not None else func
    if binding is not None and binding.is_method and getattr(func, "__self__", None) is not None:
        function = types.MethodType(function, func.__self__)  # type: ignore[attr-defined]
    if not items:
        raise ValueError(
            f"tune: the sample for {getattr(function, '__qualname__', function)} is empty; pass some items"
        )
    tuning = _Tuner(function, items, args, kwargs, seconds).tune()
    if binding is not None:
        binding.tuning = tuning
    logger.info("%s", tuning)
    return tuning


class _Tuner:
    def __init__(
        self, function: Any, items: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float
    ) -> None:
        from opero.functions import kind_of, short_name

        self.function = function
        self.name = short_name(function)
        self.kind = kind_of(function)
        if self.kind not in MODES:
            raise ConfigError(f"{self.name} is a generator function and cannot be mapped")
        self.items = items
        self.args = args
        self.kwargs = kwargs
        self.budget = seconds
        self.in_batches = BatchRule(function, 0, None).applies(items[0])
        self.batch_size: int | None = None
        self.measurements: list[Measurement] = []
        self.each = 0.0

    def tune(self) -> Tuning:
        first = self._sequential()
        self.each = 1 / first.rate
        plain = first
        if self.in_batches:
            plain = self._batches(first)
        tried = [plain]
        if self.kind == "async":
            tried += self._rising("async", TASKS)
            tried += self._maybe("async_process", cpu_limit()) if plain.cpu > IO_BOUND else []
        else:
            tried += self._rising("thread", THREADS if plain.cpu < CPU_BOUND else (cpu_limit(),))
            tried += self._maybe("process", cpu_limit()) if plain.cpu > IO_BOUND else []
        best = max(tried, key=lambda each: each.rate)
        chosen = next(
            each for each in sorted(tried, key=lambda each: each.workers) if each.rate >= GOOD_ENOUGH * best.rate
        )
        cpu = plain.cpu
        return Tuning(
            function=self.name,
            bound_by="cpu" if cpu >= CPU_BOUND else "io" if cpu <= IO_BOUND else "both",
            mode=chosen.mode,
            workers=chosen.workers,
            batch_size=self.batch_size,
            gain=chosen.rate / plain.rate,
            seconds=1 / plain.rate,
            measurements=tuple(self.measurements),
        )

    def _batches(self, first: Measurement) -> Measurement:
        """The best size of a batch, one after the other."""
        best = first
        for size in BATCHES[1:]:
            self.batch_size = size
            measured = self._sequential()
            if measured.rate < best.rate / GOOD_ENOUGH:
                break
            best = measured
            if size >= len(self.items):
                break
        self.batch_size = best.batch_size
        self.each = 1 / best.rate
        return best

    def _rising(self, mode: str, counts: Sequence[int]) -> list[Measurement]:
        """More and more workers, as long as that helps."""
        measured: list[Measurement] = []
        for count in counts:
            measured.append(self._map(mode, count))
            if len(measured) > 1 and measured[-1].rate < measured[-2].rate / GOOD_ENOUGH:
                break
        return measured

    def _maybe(self, mode: str, count: int) -> list[Measurement]:
        """In processes, where the function can be sent there."""
        try:
            self._bound(mode, count).map(self.items[:1], *self.args, **self.kwargs) if self.kind == "sync" else None
            return [self._map(mode, count)]
        except ConfigError as error:
            logger.info("%s is not tuned in mode %s: %s", self.name, mode, error)
            return []

    def _bound(self, mode: str, count: int) -> Any:
        from opero.policies.parallel import ParallelPolicy
        from opero.policies.policy import Policy

        parallel = ParallelPolicy(
            mode=mode,  # type: ignore[arg-type]
            workers=count,
            progress=False,
            batch=self.in_batches,
            batch_size=(self.batch_size or 1) if self.in_batches else None,
        )
        return Policy(parallel=parallel).apply(self.function)

    def _items(self, workers: int) -> list[Any]:
        """So many items as take a part of the time that there is."""
        count = int(self.budget / 10 / self.each * workers) if self.each else len(self.items)
        count = max(2 * workers * (self.batch_size or 1), min(count, MOST_ITEMS))
        return list(itertools.islice(itertools.cycle(self.items), count))

    def _map(self, mode: str, count: int) -> Measurement:
        bound, items = self._bound(mode, count), self._items(count)
        if mode in ("process", "async_process"):
            self._run(bound, items[: 2 * count])  # until the workers are there
        started, computed = time.perf_counter(), time.process_time()
        self._run(bound, items)
        seconds, computed = time.perf_counter() - started, time.process_time() - computed
        return self._note(Measurement(mode, count, len(items) / seconds, computed / seconds, self.batch_size))

    def _run(self, bound: Any, items: list[Any]) -> None:
        if self.kind == "async":
            asyncio.run(bound.map(items, *self.args, **self.kwargs))
        else:
            bound.map(items, *self.args, **self.kwargs)

    def _note(self, measurement: Measurement) -> Measurement:
        self.measurements.append(measurement)
        return measurement

    def _sequential(self) -> Measurement:
        """One item after the other, for a tenth of the time that there is, and one at least."""
        size = (self.batch_size or 1) if self.in_batches else None
        self.batch_size = size
        if self.kind == "async":
            done, seconds, computed = asyncio.run(self._sequential_async(size))
        else:
            done, started, cpu = 0, time.perf_counter(), time.process_time()
            for argument in self._arguments(size):
                self._call(argument)
                done += size or 1
                if time.perf_counter() - started > self.budget / 10:
                    break
            seconds, computed = time.perf_counter() - started, time.process_time() - cpu
        return self._note(Measurement("sequential", 1, done / seconds, min(1.0, computed / seconds), size))

    async def _sequential_async(self, size: int | None) -> tuple[int, float, float]:
        done, started, cpu = 0, time.perf_counter(), time.process_time()
        for argument in self._arguments(size):
            try:
                await self.function(argument, *self.args, **self.kwargs)
            except Exception as error:
                raise self._failed(argument, error) from error
            done += size or 1
            if time.perf_counter() - started > self.budget / 10:
                break
        return done, time.perf_counter() - started, time.process_time() - cpu

    def _call(self, argument: Any) -> None:
        try:
            self.function(argument, *self.args, **self.kwargs)
        except Exception as error:
            raise self._failed(argument, error) from error

    def _failed(self, argument: Any, error: Exception) -> MapError:
        from opero.errors import Failure

        return MapError(f"tune: {self.name} failed with an item of the sample", {}, [Failure(0, argument, error)])

    def _arguments(self, size: int | None) -> Iterable[Any]:
        items = itertools.cycle(self.items)
        if size is None:
            return itertools.islice(items, max(len(self.items), MOST_ITEMS))
        return iter(lambda: list(itertools.islice(items, size)), [])
