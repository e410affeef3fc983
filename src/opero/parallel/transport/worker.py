"""Runs chunks in a worker: a process of this machine, or a worker of an executor or a cluster."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable, MutableSequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import cloudpickle

import opero.parallel
from opero.binding.binding import Binding
from opero.errors import describe
from opero.observe.counts import difference
from opero.observe.stats import Stats
from opero.parallel.engine.batching import BatchRule
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.forwarding import enter
from opero.parallel.transport.messages import (
    Unreadable,
    decode_items,
    encode_end,
    encode_report,
    encode_unreadable,
)
from opero.parallel.transport.parcel import Parcel
from opero.parallel.transport.pickling import dumps
from opero.parallel.transport.setup import find
from opero.parallel.workers.chunk_runner import BEGUN, POSITION, ChunkRunner
from opero.runtime.forking import RenewedLock
from opero.runtime.functions import full_name, kind_of

if TYPE_CHECKING:
    from opero.parallel.transport.setup import Setup

MOST_SETUPS, MOST_LARGE = 8, 2
"""The most maps that a worker is set up for, and those among them whose function or arguments are large."""
NOWHERE = -1
"""The position while no item runs."""


class NotReady(Exception):  # noqa: N818  # its cause is the error
    """The worker could not be set up for a map; the message says what failed."""


class Job:
    """A map, as a worker is set up for it.

    Raises:
        NotReady: the initializer failed.
    """

    def __init__(self, setup: Setup) -> None:
        self.control: MutableSequence[int] = [0, NOWHERE, 0]
        self.concurrency = setup.concurrency
        self.call_context = setup.context
        self.context = contextvars.Context()
        if setup.context is not None:
            enter(setup.context)
            self.context = setup.context.context()
        self.context.run(opero.parallel.is_in_worker.set, True)
        if setup.initializer is not None:
            initialize(setup.initializer, self.context)
        function = find(setup.reference)
        timeout = setup.policy.in_force("timeout")
        if timeout is not None and timeout.enforce == "interrupt" and kind_of(function) == "sync":
            function = self._timed(function)
        self._is_interruptible = False
        stats = Stats(setup.function, setup.profile)
        self.binding = Binding(function, setup.policy, provider=setup.limits, stats=stats)
        self._counts: dict[str, Any] = {}
        rule = BatchRule(function, setup.position, setup.batch)
        self.work = ChunkRunner(self.binding, setup.fixed, rule, setup.batch_size, has_cache=setup.has_cache)
        self.runner = asyncio.Runner() if self.binding.is_async else None
        self.loop = self.runner.get_loop() if self.runner is not None else None

    def close(self) -> None:
        if self.runner is not None:
            self.runner.close()

    def __del__(self) -> None:
        # The worker was a thread that has ended, of this process or of a dask worker.
        loop = getattr(self, "loop", None)
        if loop is not None and not loop.is_closed():
            loop.close()

    def _renew_runner(self) -> None:
        """Replace an event loop that an item has ended, as by SystemExit: the next run of it would raise that again."""
        with suppress(BaseException):
            self.close()
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, recording when each attempt starts: the parent kills one that ignores its timeout."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            control = self.control
            control[BEGUN] = time.monotonic_ns()
            try:
                return function(*args, **kwargs)
            finally:
                control[BEGUN] = 0

        return timed

    def run(self, items: list[Any], report: Report, *, keep_going: bool) -> None:
        """Run items, and add their outcomes to the report."""
        # A copy for each chunk: what an item sets is seen neither by the next map nor by one that takes turns with it.
        context = self.context.copy()
        if self.call_context is not None:
            enter(self.call_context)
        if self.runner is None:
            try:
                try:
                    self._is_interruptible = True
                    context.run(self.work.run, items, self.control, report, keep_going=keep_going)
                finally:
                    self._is_interruptible = False
                    del items, report  # see `ChunkRunner.run`
            except Interrupted:
                pass
            return
        run = self.work.run_async(items, self.control, report, self.concurrency, keep_going=keep_going)
        try:
            self.runner.run(run, context=context)
        except asyncio.CancelledError:
            pass
        except BaseException:
            self._renew_runner()
            raise

    def interrupt(self) -> None:
        """End what runs, in the main thread: in a signal handler for a sync function, else from any thread."""
        loop = self.loop
        if loop is not None:
            with suppress(RuntimeError):  # it has been closed
                loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        elif self._is_interruptible:
            raise Interrupted

    def run_readable(self, items: list[Any], broken: dict[int, Exception], *, keep_going: bool) -> Report:
        """Run the items that could be unpickled; the others have failed."""
        readable = [position for position in range(len(items)) if position not in broken]
        report = self.new_report()
        if readable and keep_going:
            self.run([items[position] for position in readable], report, keep_going=True)
        places = range(len(report.values)) if report.positions is None else report.positions
        errors: list[Any] = []
        for error in broken.values():
            errors.append(TypeError(f"an item cannot be read in a worker process: {describe(error)}"))
            errors[-1].__cause__ = error
            self.binding.stats.count_calls(1)
            self.binding.stats.count_error(errors[-1])
            self.binding.stats.count_failure(errors[-1])
        return Report(
            [*report.values, *errors],
            [*(readable[each] for each in report.failures), *broken],
            positions=[*(readable[each] for each in places), *broken],
            fell_back=[readable[each] for each in report.fell_back],
            seconds=report.seconds,
        )

    def new_report(self) -> Report:
        return Report([], positions=None if self.runner is None else [])

    def new_counts(self) -> dict[str, Any]:
        """What the binding has counted since the last call. Never resets a count: another thread may add to it."""
        before, self._counts = self._counts, self.binding.stats.as_counts()
        return difference(self._counts, before)


def initialize(reference: Any, context: contextvars.Context) -> None:
    """Call an initializer once per process, and set the context variables that it set in this context too.

    Raises:
        NotReady: it failed.
    """
    key = dumps(reference)
    with _initializing:
        if key not in _initialized:
            before = dict(context.items())
            initializer = find(reference)
            try:
                context.run(initializer)
            except Exception as error:
                raise NotReady(f"the initializer {full_name(initializer)} failed") from error
            _initialized[key] = {
                variable: value
                for variable, value in context.items()
                if variable not in before or before[variable] is not value
            }
            return
    for variable, value in _initialized[key].items():
        context.run(variable.set, value)


_initializing = RenewedLock()
_initialized: dict[bytes, dict[contextvars.ContextVar[Any], Any]] = {}
"""The context variables that each initializer set, by its reference. An initializer runs once in a process."""


def load_job(setup: bytes | Parcel) -> Job:
    """The job that a pickled `Setup` describes.

    Raises:
        NotReady: the worker cannot be set up for it.
    """
    try:
        loaded: Setup = setup.load() if isinstance(setup, Parcel) else cloudpickle.loads(setup)
        if loaded.context is None or not loaded.context.is_home:
            opero.parallel.is_worker = True
        return Job(loaded)
    except NotReady:
        raise
    except Exception as error:
        raise NotReady("its function could not be set up") from error


class Interrupted(BaseException):
    """Thrown into the item that runs when its map has ended, so that its `finally` blocks run."""


class RunningChunk:
    """Runs one chunk. Another thread may take what is finished while the rest still runs.

    Args:
        control: see `opero.parallel.workers.chunk_runner`.
    """

    def __init__(self, control: MutableSequence[int]) -> None:
        self._control = control
        self._job: Job
        self._report: Report | None = None
        self._taken = self.just_taken = 0
        self._seconds = 0.0
        self._started = time.perf_counter()

    def run(self, load: Callable[[], Job], payload: bytes, *, keep_going: bool) -> bytes | None:
        """Run the chunk to its end. None: `take` has the report; else the message that says why there is none."""
        # No exception leaves this method: not every one could be sent as it is.
        try:
            self._job = job = load()
            job.control = self._control
            items, broken = decode_items(payload)
            if broken:
                self._report = job.run_readable(items, broken, keep_going=keep_going)
                return None
            self._report = job.new_report()
            self._started = time.perf_counter()
            job.run(items, self._report, keep_going=keep_going)
        except Unreadable:
            return encode_unreadable()
        except NotReady as error:
            return encode_end(error.__cause__ or error, str(error))
        except BaseException as error:  # noqa: BLE001  # an item's SystemExit, or an error in this package
            return encode_end(error)
        finally:
            self._control[POSITION] = NOWHERE
        return None

    def interrupt(self) -> None:
        """End the item that runs (see `Job.interrupt`)."""
        job = getattr(self, "_job", None)
        if job is not None:
            job.interrupt()

    @property
    def has_more(self) -> bool:
        """Whether something has finished that was not taken."""
        return self._report is not None and len(self._report.values) > self._taken

    def take(self, *, strictly: bool = False) -> bytes:
        """The message for what has finished since the last call.

        Args:
            strictly: raise the error of a result that cannot be pickled, instead of failing its item.
        """
        if self._report is None:
            return encode_report(Report([]), dict)
        # A position is recorded after its value, and a failure before it: this order sees whole items only.
        positions, values = self._report.positions, self._report.values
        first, last = self._taken, len(values) if positions is None else len(positions)
        taken = list(range(first, last)) if positions is None else positions[first:last]
        chosen = set(taken)
        part = Report(
            values[first:last],
            [each for each in list(self._report.failures) if each in chosen],
            positions=None if positions is None and not first else taken,
            fell_back=[each for each in list(self._report.fell_back) if each in chosen],
            seconds=max(0.0, (self._report.seconds or time.perf_counter() - self._started) - self._seconds),
        )
        message = encode_report(part, self._job.new_counts, strictly=strictly)
        self._seconds += part.seconds
        self._taken, self.just_taken = last, last - first
        return message


class Jobs(threading.local):
    """The jobs that this thread of a worker of an executor or a cluster has been set up for, by their setups."""

    def __init__(self) -> None:
        self._held: dict[bytes | Parcel, Job] = {}

    def get(self, setup: bytes | Parcel) -> Job:
        """The job of a setup, made now if this thread does not have it."""
        held = self._held
        if setup not in held:
            large = [each for each in held if isinstance(each, Parcel)]
            if isinstance(setup, Parcel) and len(large) >= MOST_LARGE:
                held.pop(large[0]).close()
            while len(held) >= MOST_SETUPS:
                held.pop(next(iter(held))).close()
            held[setup] = load_job(setup)
        return held[setup]


_jobs = Jobs()


def run_chunk(setup: bytes | Parcel, payload: bytes, *, keep_going: bool) -> bytes:
    """Run a chunk in a worker of an executor or a cluster.

    Args:
        setup: a pickled or packed `Setup`.
        payload: the encoded items.
        keep_going: continue after a failed item.

    Returns:
        The message that `decode_report` reads.
    """
    run = RunningChunk([0, NOWHERE, 0])
    try:
        return run.run(lambda: _jobs.get(setup), payload, keep_going=keep_going) or run.take()
    finally:
        del run  # see `ChunkRunner.run`
