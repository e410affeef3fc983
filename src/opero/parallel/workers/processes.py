"""Items in worker processes.

A worker gets the function as (module, qualified
name) and unwraps it there; by value only where that name does not lead back to it, as for locals and `__main__`.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections import deque
from concurrent.futures import BrokenExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opero.errors import CallTimeoutError, WorkerDiedError
from opero.observe.logs import logger
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.parent_watch import interrupt
from opero.parallel.transport.pickling import dumps, opened, pickled_setup, unsendable
from opero.parallel.transport.worker import CHUNK
from opero.parallel.workers.base import Workers
from opero.parallel.workers.process_pool import give_back, take_process
from opero.parallel.workers.work import BEGUN, POSITION, STOP
from opero.runtime.machine import resident
from opero.runtime.private_folder import private_folder

if TYPE_CHECKING:
    from concurrent.futures import Future

    from opero.observe.stats import Stats
    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.transport.worker import Setup
    from opero.parallel.workers.process_pool import Process

__all__ = ["ProcessWorkers"]

LARGE = 1 << 16
"""Bytes of a setup, from which on it is sent once, by way of a file, and not with every chunk."""
LONG_CHUNK = 0.05
"""Seconds: a chunk that takes longer has none waiting behind it."""
LAST_ITEM = 0.05
"""Seconds that a worker has to come to the end of its item when nobody waits for it; then it is killed."""
GRACE, GRACE_SHARE = 0.5, 0.5
"""Seconds, and part of the timeout, that an attempt gets beyond its timeout before its worker is killed."""
DIED, TIMEOUT, MEMORY = "it died", "its attempt took too long", "it took too much memory"
"""Why a worker process has ended."""
MOURNED = 0.5
"""Seconds between looks at whether workers live: loky does not see one that dies amid a large result."""
LOOK = 0.1
"""Seconds between looks at attempts that have a timeout."""


class Sent:
    """A chunk on its way: what of it was sent, to which process, under which number."""

    __slots__ = ("chunk", "future", "number", "positions", "process")
    numbers = itertools.count(1)

    def __init__(self, chunk: Chunk, process: Process, positions: list[int] | None) -> None:
        self.chunk = chunk
        self.process = process
        self.positions = positions
        self.number = next(self.numbers)
        self.future: Future[bytes]


class ProcessWorkers(Workers):
    """Worker processes, each of which has at most a chunk that runs and one that waits.

    Args:
        setup: what to do with a chunk.
        name: the function's, for messages.
        count: the most processes.
        inbox: where the reports go.
        stats: what the workers count is added here.
        retries: how often an item that may have killed its worker is tried again.

    Raises:
        ConfigError: the function or its arguments do not pickle; nothing has been sent then.
    """

    def __init__(
        self, setup: Setup, name: str, count: int, inbox: Inbox, stats: Stats, *, first: list[Any], retries: int = 1
    ) -> None:
        self.concurrency = setup.concurrency
        self._name = name
        self._count = count
        self._inbox = inbox
        self._stats = stats
        self._retries = retries
        self._processes: list[Process] = []
        self._waiting: deque[Chunk] = deque()
        self._is_stopped = False
        self._chunk_seconds = 0.0
        self._sent: dict[Chunk, Sent] = {}
        timeout = setup.policy.active("timeout")
        self._limit = None if timeout is None else timeout.attempt or timeout.total
        self._scope = "attempt" if timeout is not None and timeout.attempt else "total"
        self.patience = MOURNED if self._limit is None else LOOK
        self._batch_size = setup.batch_size or 1
        self._setup: bytes | str = pickled_setup(setup, name, first)
        if len(self._setup) > LARGE:
            path = private_folder() / f"setup-{next(Sent.numbers)}"
            path.write_bytes(self._setup)
            self._setup = str(path)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self._count * (1 if self._chunk_seconds > LONG_CHUNK else 2)

    @property
    def at_once(self) -> int:
        return self._count

    # Sending

    def submit(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        self._send()

    def _send(self) -> None:
        while self._waiting and not self._is_stopped:
            process = self._free_process(alone=bool(self._waiting[0].suspect))
            if process is None:
                return
            self._send_to(process, self._waiting.popleft())
        while self._waiting:  # stopped
            self._inbox.put((self._waiting.popleft(), Report([])))

    def _free_process(self, *, alone: bool) -> Process | None:
        """The process with least to do; `alone`: with nothing."""
        usable = []
        for process in list(self._processes):
            if process.is_usable:
                usable.append(process)
            elif not process.under_way:
                self._drop(process)
        best = min(usable, key=lambda each: len(each.under_way), default=None)
        if (best is None or best.under_way) and len(usable) < self._count:
            best = take_process(not usable, max(self._count, os.cpu_count() or 1)) or best
            if best is not None and best not in self._processes:
                self._processes.append(best)
        if best is None or best.reserved or len(best.under_way) >= (1 if alone else 2):
            return None
        return best

    def _drop(self, process: Process) -> None:
        self._processes.remove(process)
        give_back(process)

    def _send_to(self, process: Process, chunk: Chunk) -> None:
        positions = None
        try:
            payload = dumps(chunk.items)
        except Exception:  # noqa: BLE001  # one of them does not pickle: it alone fails
            positions, failed = unsendable(chunk, self._name)
            self._inbox.put((chunk, failed))
            if not positions:
                return
            payload = dumps([chunk.items[position] for position in positions])
        sent = Sent(chunk, process, positions)
        self._sent[chunk] = sent
        process.under_way.append(sent)
        process.reserved = bool(chunk.suspect)
        try:
            sent.future = process.submit(
                self._setup, payload, keep_going=chunk.keep_going, control=process.path, number=sent.number
            )
        except BrokenExecutor:  # it died since it was looked at
            process.end = "it died while it was idle"
            self._send_later(sent)
            return
        sent.future.add_done_callback(lambda _: self._inbox.put((chunk, sent)))

    def _send_later(self, sent: Sent) -> None:
        sent.process.under_way.remove(sent)
        del self._sent[sent.chunk]
        self._waiting.appendleft(sent.chunk)
        self._drop(sent.process)

    # What comes back

    def open(self, chunk: Chunk, message: Any) -> Any:
        """Make a report of what has come."""
        if isinstance(message, Report):
            return message
        sent: Sent = message
        self._sent.pop(chunk, None)
        process = sent.process
        process.under_way.remove(sent)
        process.futures.discard(sent.future)
        process.reserved = False
        try:
            report = opened(sent.future.result(), self._name, self._stats, sent.positions)
        except BaseException as error:  # noqa: BLE001  # such as SystemExit of an item
            return self._mourn(sent, error) if isinstance(error, BrokenExecutor) or process.end else error
        finally:
            self._send()
        if report.values:
            self._chunk_seconds += (report.seconds - self._chunk_seconds) / 2
        return report

    def _mourn(self, sent: Sent, error: BaseException) -> Report:
        """What to do again after a worker's death. Only the item that ran then is suspected, and no other pays."""
        chunk, process = sent.chunk, sent.process
        was_killed, process.end = process.end, process.end or DIED
        if not process.under_way and process in self._processes:
            self._drop(process)
        report = Report([], positions=[])
        sent_positions = range(len(chunk.items)) if sent.positions is None else sent.positions
        if process.control[CHUNK] != sent.number:  # it had not begun this one
            report.again = [chunk.part(sent_positions)]
            report.again[0].suspect = chunk.suspect
            report.again[0].is_solo = chunk.is_solo
            return report
        place = process.control[POSITION]
        if not (0 <= place < len(sent_positions)) or self.concurrency > 1:
            # It died of receiving or returning them, or several ran at once: look for the one in halves.
            if len(sent_positions) > 1:
                report.again = list(chunk.part(sent_positions).halves())
                for each in report.again:
                    each.suspect = 1
                return report
            place = 0
        suspects = sent_positions[place : place + self._batch_size]
        others = [each for each in sent_positions if each not in suspects]
        report.again = [chunk.part(others)] if others else []
        died = chunk.suspect + 1 if len(sent_positions) == len(suspects) else 1
        if was_killed == TIMEOUT:
            failure: Exception = self._timeout_error()
        elif was_killed == MEMORY and chunk.is_solo:
            failure = MemoryError(
                f"item {chunk.index(suspects[0])} of {self._name} needs more memory than max_memory leaves, even alone"
            )
        elif was_killed is not None and was_killed != DIED:
            report.again.insert(0, chunk.part(suspects))
            report.again[0].is_solo = was_killed == MEMORY
            return report
        elif died <= self._retries:
            suspect = chunk.part(suspects)
            suspect.suspect = died
            report.again.insert(0, suspect)
            logger.warning(
                "%s: a worker process died of item %d; it is tried again", self._name, chunk.index(suspects[0])
            )
            return report
        else:
            failure = self._death(chunk, list(suspects), died, error)
        report.values = [failure] * len(suspects)
        report.positions = list(suspects)
        report.failures = list(suspects)
        self._stats.failures += 1
        self._stats.calls += 1
        self._stats.count_error(failure)
        return report

    def _death(self, chunk: Chunk, suspects: list[int], times: int, error: BaseException) -> WorkerDiedError:
        code = re.search(r"\{(.*?)\}", str(error))
        how = f" ({code[1]})" if code else ""
        memory = "; was it out of memory?" if "SIGKILL" in how else ""
        items = f"item {chunk.index(suspects[0])}"
        if len(suspects) > 1:
            items = f"items {chunk.index(suspects[0])} to {chunk.index(suspects[-1])}"
        again = "" if times == 1 else f" {times} times, each time on a new one"
        return WorkerDiedError(f"the worker process of {self._name} died of {items}{again}{how}{memory}", times=times)

    def _timeout_error(self) -> CallTimeoutError:
        return CallTimeoutError(
            f"{self._name} took longer than its {self._scope} timeout of {self._limit:g} s and could not be "
            "interrupted; its worker process was killed",
            scope=self._scope,
            seconds=self._limit or 0.0,
        )

    def took(self, chunk: Chunk) -> None:
        self._send()

    # Watching

    def watch(self) -> None:
        """Kill the worker whose attempt goes on long after its timeout; notice one whose death loky does not."""
        now = time.monotonic()
        for process in self._processes:
            if now >= process.looked + MOURNED and process.under_way and process.end is None:
                process.looked = now
                was_dead, process.was_dead = process.was_dead, process.is_dead
                if was_dead and process.was_dead:
                    process.kill(DIED)
        if self._limit is None:
            return
        limit = (self._limit + max(GRACE, self._limit * GRACE_SHARE)) * 1e9
        now_ns = time.monotonic_ns()
        for process in self._processes:
            begun = process.control[BEGUN]
            if begun and now_ns - begun > limit and process.end is None:
                process.kill(TIMEOUT)

    def pids(self) -> list[int]:
        return [pid for process in self._processes for pid in process.pids()]

    def relieve(self, *, busy: bool) -> None:
        if any(each.end == MEMORY for each in self._processes):  # it is about to end
            return
        idle = [each for each in self._processes if not each.under_way and each.pids()]
        if not busy and len(idle) == len(self._processes):
            del idle[:1]  # for the next chunk
        for process in idle:
            process.kill(MEMORY)
            self._drop(process)
        at_work = [each for each in self._processes if each.under_way and each.end is None]
        if busy and at_work and not idle:
            max(at_work, key=lambda each: sum(map(resident, each.pids()))).kill(MEMORY)

    def stop(self) -> None:
        self._is_stopped = True
        for process in self._processes:
            process.control[STOP] = 1
        self._send()

    def interrupt(self) -> None:
        interrupt(pid for process in self._processes if process.under_way for pid in process.pids())

    async def close(self) -> None:
        """Give the processes back for other maps. What still runs is killed."""
        futures = [future for process in self._processes for future in process.futures]
        if futures and not self._is_stopped:
            self.stop()
            wait(futures, timeout=LAST_ITEM)
        for process in self._processes:
            if any(not future.done() for future in process.futures):
                process.kill("nobody waits for it")
            process.under_way.clear()
            process.futures.clear()
            process.reserved = False
            give_back(process)
        self._processes.clear()
        if isinstance(self._setup, str):
            with suppress(OSError):
                os.unlink(self._setup)
