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
from opero.binding import Binding
from opero.functions import kind_of
from opero.parallel.batch import BatchRule
from opero.parallel.blocks import Report
from opero.parallel.leash import until_interrupted
from opero.parallel.surroundings import drain_records
from opero.parallel.wire import dumps, faithful, find, loads
from opero.parallel.work import BEGUN, POSITION, STOP, Work

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence

    from opero.executors.shared import SharedLimits
    from opero.parallel.surroundings import Surroundings
    from opero.parallel.work import Rest
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
_initialized: set[bytes] = set()
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


class Job:
    """A map, as a worker is set up for it."""

    def __init__(self, setup: Setup) -> None:
        self.control: MutableSequence[int] = [0, 0, 0, 0]
        self.concurrency = setup.concurrency
        surroundings = setup.surroundings
        if surroundings is None or not surroundings.is_home:  # else its executor runs it in the parent itself
            opero.parallel.is_worker = True
        self.context = surroundings.enter() if surroundings is not None else contextvars.Context()
        self.context.run(opero.parallel.is_in_worker.set, True)
        if setup.initializer is not None:
            self._initialize(setup.initializer)
        function = find(setup.reference)
        is_timed = setup.policy.active("timeout") is not None
        if is_timed and kind_of(function) == "sync":
            function = self._timed(function)
        self.binding = Binding(function, setup.policy, share=setup.limits)
        rule = BatchRule(function, setup.position, setup.batch)
        self.work = Work(self.binding, setup.rest, rule, setup.batch_size, beside_cache=setup.beside_cache)
        self.runner = asyncio.Runner() if self.binding.is_async else None
        self.loop = self.runner.get_loop() if self.runner is not None else None

    def _initialize(self, reference: Any) -> None:
        """Call the initializer, once in a process."""
        key = dumps(reference)
        if key not in _initialized:
            self.context.run(find(reference))
            _initialized.add(key)

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
        report = Report([])
        if self.runner is None:
            run = functools.partial(self.work.run, items, self.control, report, keep_going=keep_going)
            until_interrupted(lambda: self.context.run(run))
            return report
        report.positions = []
        runner, loop = self.runner, self.runner.get_loop()

        async def run_all() -> None:
            with suppress(asyncio.CancelledError):
                await self.work.run_async(items, self.control, report, self.concurrency, keep_going=keep_going)

        def cancel() -> None:
            for task in asyncio.all_tasks(loop):
                task.cancel()

        until_interrupted(
            lambda: runner.run(run_all(), context=self.context), lambda: loop.call_soon_threadsafe(cancel)
        )
        return report


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
        jobs[key] = Job(cloudpickle.loads(data))
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
    job = _job(setup)
    job.control = view
    report = job.run(loads(payload), keep_going=keep_going)
    view[POSITION] = NOWHERE
    for place, position in enumerate(report.positions or ()):
        if position in report.failures:
            report.values[place] = faithful(report.values[place])
    if report.positions is None:
        for position in report.failures:
            report.values[position] = faithful(report.values[position])
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
            values.append(TypeError(f"the result {value!r:.200} cannot be sent back from a worker process: {error}"))
            failures.append(position)
    return values, failures
