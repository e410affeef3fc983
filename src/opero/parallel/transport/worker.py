"""What runs in a worker process, or on another machine."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import mmap
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

import opero.parallel
from opero.binding.binding import Binding
from opero.errors import text_of
from opero.parallel.engine.batching import BatchRule
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.context import drain_records
from opero.parallel.transport.exceptions import faithful
from opero.parallel.transport.parent_watch import until_interrupted
from opero.parallel.transport.pickling import Ended, dumps, find, items_of, shown
from opero.parallel.workers.work import BEGUN, POSITION, STOP, Work
from opero.runtime.functions import full_name, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence

    from opero.executors.state.sharing import SharedLimits
    from opero.parallel.transport.context import Surroundings
    from opero.parallel.workers.work import Rest
    from opero.policies.policy import Policy

__all__ = ["CHUNK", "CONTROL_BYTES", "Setup", "open_control", "run_chunk"]

CHUNK = 3
"""Where a control holds the number of the chunk that runs."""
CONTROL_BYTES = 64
MOST_SETUPS = 8
NOWHERE = -1
"""The position while no item runs."""


class _Ready(threading.local):
    """What this thread of the worker has been set up for, by the bytes that say so; the last few."""

    def __init__(self) -> None:
        self.jobs: dict[bytes, Job] = {}


_ready = _Ready()
_initializing = threading.Lock()
_initialized: dict[bytes, dict[contextvars.ContextVar[Any], Any]] = {}
"""By the initializers that have been called in this process, the context variables that they set."""
_controls: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker has to know of a map before its first chunk.

    Attributes:
        reference: the function, as `wire.reference` tells of it.
        policy: what runs around the function in the worker.
        rest: the arguments that all calls have in common.
        position, batch: as in `BatchRule`.
        batch_size: items a call; None: each call gets one item.
        beside_cache: as in `Work`.
        concurrency: calls at a time of an async function.
        initializer: is called first in each process, if need be as `wire.reference` tells of it.
        surroundings: what surrounds the calls.
        limits: where rate limit, circuit breaker and bulkhead keep their state.
    """

    reference: Any
    policy: Policy
    rest: Rest
    position: int
    batch: bool | None
    batch_size: int | None
    beside_cache: bool
    concurrency: int = 1
    initializer: Any = None
    surroundings: Surroundings | None = None
    limits: SharedLimits | None = None


class NotReady(Exception):  # noqa: N818  # its cause is the error
    """This worker could not be made ready for a map; the message says what failed."""


class Job:
    """A map, as a worker is set up for it.

    Raises:
        NotReady: it cannot be.
    """

    def __init__(self, setup: Setup) -> None:
        self.control: MutableSequence[int] = [0, 0, 0, 0]
        self.concurrency = setup.concurrency
        self.surroundings = setup.surroundings
        self.context = contextvars.Context()
        if setup.surroundings is not None:
            setup.surroundings.enter()
            self.context = setup.surroundings.context()
        self.context.run(opero.parallel.is_in_worker.set, True)
        if setup.initializer is not None:
            initialize(setup.initializer, self.context)
        function = find(setup.reference)
        is_timed = setup.policy.active("timeout") is not None
        if is_timed and kind_of(function) == "sync":
            function = self._timed(function)
        self.binding = Binding(function, setup.policy, provider=setup.limits)
        rule = BatchRule(function, setup.position, setup.batch)
        self.work = Work(self.binding, setup.rest, rule, setup.batch_size, beside_cache=setup.beside_cache)
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

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, telling when each attempt began: one that cannot be interrupted here is ended from outside."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            control = self.control
            control[BEGUN] = time.monotonic_ns()
            try:
                return function(*args, **kwargs)
            finally:
                control[BEGUN] = 0

        return timed

    def run(self, items: list[Any], *, keep_going: bool) -> Report:
        """What became of the items, or of those that were finished when this worker was told to give them back."""
        # A copy for each chunk: what an item sets is not seen by the next map, nor by one that runs in turns with it.
        context = self.context.copy()
        if self.surroundings is not None:
            self.surroundings.enter()
        report = Report([])
        if self.runner is None:
            run = functools.partial(self.work.run, items, self.control, report, keep_going=keep_going)
            until_interrupted(lambda: context.run(run))
            return report
        report.positions = []
        runner, loop = self.runner, self.runner.get_loop()

        async def run_all() -> None:
            with suppress(asyncio.CancelledError):
                await self.work.run_async(items, self.control, report, self.concurrency, keep_going=keep_going)

        def cancel() -> None:
            for task in asyncio.all_tasks(loop):
                task.cancel()

        until_interrupted(lambda: runner.run(run_all(), context=context), lambda: loop.call_soon_threadsafe(cancel))
        return report

    def run_readable(self, items: list[Any], broken: dict[int, Exception], *, keep_going: bool) -> Report:
        """As `run`, where some items cannot be read: they have failed."""
        readable = [position for position in range(len(items)) if position not in broken]
        report = Report([])
        if readable and keep_going:
            report = self.run([items[position] for position in readable], keep_going=True)
        places = range(len(report.values)) if report.positions is None else report.positions
        errors: list[Any] = []
        for error in broken.values():
            errors.append(
                TypeError(f"an item cannot be read in a worker process: {type(error).__name__}: {text_of(error)}")
            )
            errors[-1].__cause__ = error
            self.binding.stats.calls += 1
            self.binding.stats.failures += 1
            self.binding.stats.count_error(errors[-1])
        return Report(
            [*report.values, *errors],
            [*(readable[each] for each in report.failures), *broken],
            positions=[*(readable[each] for each in places), *broken],
            fell_back=[readable[each] for each in report.fell_back],
            seconds=report.seconds,
        )


def initialize(reference: Any, context: contextvars.Context) -> None:
    """Call an initializer, once in a process; the context variables that it set are set in this context, too.

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


def open_control(path: str) -> Any:
    """Memory that this process and its parent have in common."""
    with Path(path).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), CONTROL_BYTES)).cast("q")


def _job(setup: bytes | str) -> Job:
    """The job that some bytes, or the file of that name, tell of."""
    data = Path(setup).read_bytes() if isinstance(setup, str) else setup
    key = data if isinstance(setup, bytes) else setup.encode()
    jobs = _ready.jobs
    if key not in jobs:
        while len(jobs) >= MOST_SETUPS:
            jobs.pop(next(iter(jobs))).close()
        try:
            told: Setup = cloudpickle.loads(data)
            if told.surroundings is None or not told.surroundings.is_home:
                opero.parallel.is_worker = True
            jobs[key] = Job(told)
        except NotReady:
            raise
        except Exception as error:
            raise NotReady("its function could not be set up") from error
    return jobs[key]


def run_chunk(
    setup: bytes | str, payload: bytes, *, keep_going: bool, control: str | None = None, number: int = 0
) -> bytes:
    """Run a chunk.

    Args:
        setup: a pickled `Setup`, or the name of a file that holds it.
        payload: the pickled items.
        keep_going: go on after a failed item.
        control: the file through which the parent sees what runs, and stops it.
        number: the chunk's, for the control.

    Returns:
        What became of it, pickled: the report's parts, what the function's binding counted, and what was logged.
    """
    view: MutableSequence[int] = [0, NOWHERE, 0, number]
    if control is not None:
        if control not in _controls:
            _controls[control] = open_control(control)
        view = _controls[control]
        view[POSITION], view[BEGUN], view[CHUNK] = NOWHERE, 0, number
        if view[STOP]:
            return dumps(([], [], None, [], 0.0, {}, []))
    # Nothing is raised out of here: not every exception could travel as it is.
    try:
        job = _job(setup)
        job.control = view
        items, broken = items_of(payload)
        run = functools.partial(job.run_readable, broken=broken) if broken else job.run
        report = run(items, keep_going=keep_going)
    except NotReady as error:
        return dumps(Ended(faithful(error.__cause__ or error), str(error), drain_records()))
    except BaseException as error:  # noqa: BLE001  # an item's SystemExit, or what is wrong here
        return dumps(Ended(faithful(error), "", drain_records()))
    finally:
        view[POSITION] = NOWHERE
    held: dict[int, Any] = {}
    failures = set(report.failures)
    for place, position in enumerate(range(len(report.values)) if report.positions is None else report.positions):
        if position in failures:
            report.values[place] = faithful(report.values[place], held)
    counts = job.binding.stats.drain()
    rest = report.positions, list(report.fell_back), report.seconds, counts, drain_records()
    try:
        return dumps((report.values, list(report.failures), *rest))
    except Exception:  # noqa: BLE001  # one of them does not pickle: find it
        return dumps((*_sendable(report), *rest))


def _sendable(report: Report) -> tuple[list[Any], list[int]]:
    """The values and failures, with an exception that says why in the place of what cannot be sent back."""
    values, failures = [], list(report.failures)
    positions = range(len(report.values)) if report.positions is None else report.positions
    for position, value in zip(positions, report.values, strict=True):
        try:
            dumps(value)
            values.append(value)
        except Exception as error:  # noqa: BLE001  # it is told to the caller
            told = f"the result {shown(value, 200)} cannot be sent back from a worker process: {error}"
            values.append(TypeError(told))
            failures.append(position)
    return values, failures
