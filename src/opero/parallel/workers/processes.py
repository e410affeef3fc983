"""Worker processes of this machine, as a pool: each runs one chunk, and has at most one more waiting.

A function is sent to a worker as module and qualified name if they lead back to it, else by value, as for local
functions and `__main__`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from opero.errors import CallTimeoutError
from opero.parallel.transport.parcel import Parcel
from opero.parallel.transport.process import CHUNK
from opero.parallel.transport.program_state import pickled_state
from opero.parallel.workers.chunk_runner import BEGUN, POSITION, STOP
from opero.parallel.workers.pool import Death, Pool
from opero.parallel.workers.process import ProcessDied, give_back, take_process
from opero.runtime.machine import cpu_limit, resident

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.transport.parcel import Packed
    from opero.parallel.transport.setup import Setup
    from opero.parallel.workers.pool import Task
    from opero.parallel.workers.process import Process

LONG_CHUNK = 0.05
"""Seconds: a chunk that takes longer has none waiting behind it."""
LAST_ITEM = 0.3
"""Seconds that a worker has to end its item when a map is closed, `finally` blocks included; then it is killed."""
GRACE, GRACE_SHARE = 0.5, 0.5
"""Seconds, and fraction of the timeout, that an attempt gets beyond its timeout before its worker is killed."""
LOOK = 0.1
"""Seconds between checks of attempts that have a timeout."""
MOST_FAILED_STARTS = 3
"""Processes in a row that may end before they are ready; then the map ends."""
TIMEOUT, MEMORY, CLOSED = "its attempt took too long", "it took too much memory", "its map was closed"
"""Why this module kills a process."""


class ProcessPool(Pool):
    """Worker processes for one map.

    Args:
        setup: what the workers need.
        packed: the same, pickled.
        name: the function's name, for messages.
        count: the most processes.
        environment: their environment variables.
    """

    deaths = (ProcessDied,)
    worker = "worker process"
    what = "the pool of worker processes"
    way_out = "look at what the processes wrote to stderr"

    def __init__(self, setup: Setup, packed: Packed, name: str, count: int, environment: Mapping[str, str]) -> None:
        self.count = count
        self._name = name
        self._packed = packed
        self._environment = environment
        self._state = pickled_state(environment)
        timeout = setup.policy.in_force("timeout")
        is_enforced = timeout is not None and timeout.enforce == "interrupt"
        self._limit = timeout.attempt or timeout.total if is_enforced else None
        self._scope = "attempt" if timeout is not None and timeout.attempt else "total"
        self.patience = None if self._limit is None else LOOK
        self._processes: list[Process] = []
        self._next: Process
        self._chunk_seconds = 0.0
        self._failed_starts = 0
        self._where: dict[Task, Process] = {}

    @property
    def slots(self) -> int:
        return self.count * (1 if self._chunk_seconds > LONG_CHUNK else 2)

    # Sending

    def accepts(self, chunk: Chunk, under_way: Iterable[Chunk]) -> bool:
        """Whether a process can take a chunk: one that may have killed a worker has a process to itself."""
        for process in [each for each in self._processes if not each.is_usable]:
            self._drop(process)
        best = min(self._processes, key=lambda each: len(each.tasks), default=None)
        if (best is None or best.tasks) and len(self._processes) < self.count:
            best = take_process(self._processes, max(self.count, cpu_limit()), self._environment) or best
        if best is None or best.is_reserved or len(best.tasks) >= (1 if chunk.suspect else 2):
            return False
        self._next = best
        return True

    def _drop(self, process: Process) -> None:
        self._failed_starts += not process.is_ready and process.end is None
        give_back(process)
        self._processes.remove(process)

    def submit(self, task: Task) -> None:
        process = self._where[task] = self._next
        process.send(task, self._state, self._packed.contents)

    def received(self, task: Task) -> None:
        if self._where.pop(task).is_ready:
            self._failed_starts = 0
        if task.seconds:
            self._chunk_seconds += (task.seconds - self._chunk_seconds) / 2

    # Deaths

    def death(self, task: Task, error: BaseException) -> Death:
        process = self._where[task]
        if process in self._processes:
            self._drop(process)
        control, reason, cause = process.control, process.end, str(error)
        if control[CHUNK] != task.number:
            return Death(cause, has_begun=False)
        place = control[POSITION]
        known = place if 0 <= place < len(task.positions) else None
        if reason == TIMEOUT:
            return Death(cause, place=known, failure=self._timeout_error())
        if reason == MEMORY and task.chunk.is_solo:
            item = task.chunk.index(task.positions[known or 0])
            text = f"item {item} of {self._name} needs more memory than max_memory leaves, even alone"
            return Death(cause, place=known, failure=MemoryError(text))
        return Death(cause, place=known, is_innocent=reason is not None, alone=reason == MEMORY)

    def renew(self) -> bool:
        return self._failed_starts < MOST_FAILED_STARTS

    def _timeout_error(self) -> CallTimeoutError:
        return CallTimeoutError(
            f"{self._name} took longer than its {self._scope} timeout of {self._limit:g} s and could not be "
            "interrupted; its worker process was killed",
            scope=self._scope,
            seconds=self._limit or 0.0,
        )

    # Watching

    def watch(self) -> None:
        """Kill a worker whose attempt continues long after its timeout."""
        if self._limit is None:
            return
        limit = (self._limit + max(GRACE, self._limit * GRACE_SHARE)) * 1e9
        now = time.monotonic_ns()
        for process in self._processes:
            begun = process.control[BEGUN]
            if begun and now - begun > limit and process.end is None:
                process.kill(TIMEOUT)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.is_usable]

    def relieve(self, *, busy: bool) -> None:
        if any(each.end == MEMORY for each in self._processes):  # it is about to end
            return
        idle = [each for each in self._processes if not each.tasks]
        if not busy and len(idle) == len(self._processes):
            del idle[:1]  # for the next chunk
        for process in idle:
            process.kill(MEMORY)
            self._drop(process)
        at_work = [each for each in self._processes if each.tasks and each.is_usable]
        if busy and at_work and not idle:
            max(at_work, key=lambda each: resident(each.pid)).kill(MEMORY)

    # The end

    def stop(self, tasks: Sequence[Task]) -> None:
        for process in self._processes:
            process.control[STOP] = 1

    def resume(self) -> None:
        for process in self._processes:
            process.control[STOP] = 0

    def interrupt(self, tasks: Sequence[Task]) -> None:
        for process in self._processes:
            process.give_up()

    def close(self, tasks: Sequence[Task]) -> None:
        """Return the processes for other maps. Those that still run something are killed."""
        until = time.monotonic() + LAST_ITEM
        for process in self._processes:
            if not process.is_idle.wait(max(0.0, until - time.monotonic())):
                process.kill(CLOSED)
            if isinstance(self._packed.contents, Parcel):  # too large to be kept for later maps of the function
                process.forget(self._packed.contents)
            give_back(process)
        self._packed.close()
        self._processes.clear()
        self._where.clear()
