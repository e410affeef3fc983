"""Workers that chunks are sent to: one sender, and one way to handle deaths, over any `Pool`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from math import isqrt
from typing import TYPE_CHECKING, Any

from opero.errors import WorkerDiedError, message_of
from opero.events import MapWorkerLost
from opero.parallel.engine.blocks import Report
from opero.parallel.transport.messages import Unreadable, decode_report, encode_items, unsendable
from opero.parallel.workers.base import Workers
from opero.parallel.workers.pool import Task
from opero.runtime.log import log

if TYPE_CHECKING:
    from opero.parallel.engine.blocks import Chunk
    from opero.parallel.engine.inbox import Inbox
    from opero.parallel.engine.settings import MapSettings
    from opero.parallel.workers.pool import Death, Pool


class RemoteWorkers(Workers):
    """Sends chunks to a pool.

    When a worker dies, only items that may have killed it are suspected. A suspected chunk is sent again alone; one
    that kills another worker, in parts; an item that goes on to do so has failed. If a death breaks a whole pool, every
    task that was sent is suspected at first.

    Args:
        pool: where chunks go.
        settings: of the map.
        inbox: where the reports go.
        batch_size: items in one call.
    """

    def __init__(self, pool: Pool, settings: MapSettings, inbox: Inbox, batch_size: int) -> None:
        self.patience = pool.patience
        self.concurrency = settings.concurrency
        self._pool = pool
        self._name = settings.name
        self._inbox = inbox
        self._stats = settings.binding.stats  # what the workers count is added here
        self._batch_size = batch_size
        self._retries = settings.policy.worker_retries
        self._waiting: deque[Chunk] = deque()
        self._under_way: dict[Chunk, Task] = {}
        self._is_stopped = False
        self._generation = 0
        self._end: BaseException | None = None

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self._pool.slots

    @property
    def at_once(self) -> int:
        return self._pool.count

    def watch(self) -> None:
        self._pool.watch()

    def pids(self) -> list[int]:
        return self._pool.pids()

    def relieve(self, *, busy: bool) -> None:
        self._pool.relieve(busy=busy)

    # Sending

    def submit(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        self._send()

    def _send(self) -> None:
        while self._waiting and self._end is None:
            if self._is_stopped:
                self._inbox.put((self._waiting.popleft(), Report([])))
            elif self._pool.accepts(self._waiting[0], self._under_way):
                self._send_one(self._waiting.popleft())
            else:
                return

    def _send_one(self, chunk: Chunk) -> None:
        payload, positions = None, range(len(chunk.items))
        if not self._pool.shares_memory:
            payload, positions = self._payload(chunk)
            if payload is None:
                return
        task = self._under_way[chunk] = Task(chunk, positions, payload, self._inbox, self._generation)
        try:
            self._pool.submit(task)
        except BrokenExecutor as error:
            task.post(error)
        except RuntimeError as error:
            del self._under_way[chunk]
            raise self._ended(f"takes nothing more ({message_of(error)})", error) from error

    def _payload(self, chunk: Chunk) -> tuple[bytes | None, Any]:
        """The items, encoded, and their positions. Those that cannot be pickled have failed."""
        try:
            return encode_items(chunk.items, separately=chunk.is_unreadable), range(len(chunk.items))
        except Exception:  # noqa: BLE001  # one of them does not pickle
            good, report = unsendable(chunk, self._name)
            self._inbox.put((chunk, report))
            items = [chunk.items[each] for each in good]
            return (encode_items(items, separately=chunk.is_unreadable) if good else None), good

    # Receiving

    def open(self, chunk: Chunk, message: Any) -> Report | BaseException:
        if isinstance(message, Report):
            return message
        task, outcome, is_last = message
        if is_last:
            self._under_way.pop(chunk, None)
        opened = self._opened(task, outcome, is_last)
        if is_last:
            self._pool.received(task)
        if self._end is not None:
            return self._end if not self._under_way else opened if isinstance(opened, Report) else Report([])
        self._send()
        return opened

    def _opened(self, task: Task, outcome: Any, is_last: bool) -> Report | BaseException:
        if isinstance(outcome, self._pool.deaths):
            return self._after_death(task, outcome)
        if isinstance(outcome, CancelledError):
            text = f"has cancelled what it was sent ({outcome or type(outcome).__name__})"
            return Report([]) if self._is_stopped else self._ended(text, outcome)
        if isinstance(outcome, BaseException):  # such as an item's SystemExit
            return outcome
        try:
            report = outcome if isinstance(outcome, Report) else self._decoded(task, outcome, is_last)
        except Unreadable:
            part = self._part(task.chunk, task.positions)
            part.is_unreadable = True
            return Report([], positions=[], again=[part])
        except BaseException as error:  # noqa: BLE001  # it ends the map
            return error
        report.is_last = is_last
        task.seconds += report.seconds
        return report

    def _decoded(self, task: Task, message: Any, is_last: bool) -> Report:
        """A worker's report, with the positions that its items have in the chunk."""
        report = decode_report(message, self._name, self._stats)
        sent, places = task.positions, report.positions
        if places is None:
            places = list(range(len(report.values)))
        if not is_last:
            task.finished.update(sent[each] for each in places)
        if report.positions is not None or len(sent) < len(task.chunk.items):
            report.positions = [sent[each] for each in places]
            report.failures = [sent[each] for each in report.failures]
            report.fell_back = [sent[each] for each in report.fell_back]
        return report

    # Deaths

    def _after_death(self, task: Task, error: BaseException) -> Report | BaseException:
        """What to send again after a worker's death, and what has failed."""
        is_first = task.generation == self._generation  # of the tasks that one death ends
        if is_first:
            self._stats.emit(MapWorkerLost, error=error)
            if not self._pool.renew():
                self._end = self._ended(f"is broken ({type(error).__name__}: {error})", error)
                return Report([], positions=[])
            self._generation += 1
        chunk, left = task.chunk, task.unfinished()
        death = self._pool.death(task, error)
        if death.is_own and not is_first:
            self._stats.emit(MapWorkerLost, error=error)
        if not left:
            return Report([], positions=[])
        if not death.has_begun:
            return Report([], positions=[], again=[self._part(chunk, left)])
        if self._is_unclear(death) and len(left) > 1:
            # In few parts, so that few workers die.
            size = max(1, isqrt(len(left))) if death.is_own or chunk.suspect else len(left)
            parts = [self._part(chunk, left[at : at + size], 1) for at in range(0, len(left), size)]
            return Report([], positions=[], again=parts)
        suspects = left
        if not self._is_unclear(death) and death.place is not None:
            suspects = list(task.positions[death.place : death.place + self._batch_size])
        others = [each for each in left if each not in suspects]
        died = chunk.suspect + 1 if len(suspects) == len(task.positions) else 1
        again = [chunk.part(others)] if others else []
        report = Report([], positions=[], again=again)
        if death.failure is None and death.is_innocent:
            again.insert(0, chunk.part(suspects))
            again[0].is_solo = death.alone
        elif death.failure is None and (died <= self._retries or not (death.is_own or chunk.suspect)):
            again.insert(0, self._part(chunk, suspects, died))
            text, index = "%s: a %s died of item %d; it is tried again", chunk.index(suspects[0])
            log("map_worker_lost", text, self._name, self._pool.worker, index, about=self._stats, index=index)
        else:
            self._fail(report, suspects, death.failure or self._death_error(chunk, suspects, died, death.cause))
        return report

    def _is_unclear(self, death: Death) -> bool:
        """Whether more than one item may have run when the worker died."""
        return death.place is None or self.concurrency > 1

    def _part(self, chunk: Chunk, positions: Sequence[int], suspect: int | None = None) -> Chunk:
        part = chunk.part(positions)
        part.suspect = chunk.suspect if suspect is None else suspect
        part.is_solo = chunk.is_solo and suspect is None
        return part

    def _fail(self, report: Report, suspects: list[int], failure: Exception) -> None:
        report.values = [failure] * len(suspects)
        report.positions = list(suspects)
        report.failures = list(suspects)
        self._stats.count_calls(1)
        self._stats.count_error(failure)
        self._stats.count_failure(failure)

    def _death_error(self, chunk: Chunk, suspects: list[int], times: int, cause: str) -> WorkerDiedError:
        items = f"item {chunk.index(suspects[0])}"
        if len(suspects) > 1:
            items = f"items {chunk.index(suspects[0])} to {chunk.index(suspects[-1])}"
        again = "" if times == 1 else f" {times} times"
        return WorkerDiedError(f"the {self._pool.worker} of {self._name} died of {items}{again}: {cause}", times=times)

    def _ended(self, text: str, error: BaseException) -> WorkerDiedError:
        """Why the map cannot continue."""
        end = WorkerDiedError(f"{self._pool.what} of {self._name} {text}; {self._pool.way_out}")
        end.__cause__ = error
        return end

    # The end

    def stop(self) -> None:
        self._is_stopped = True
        self._pool.stop(list(self._under_way.values()))
        self._send()

    def resume(self) -> None:
        self._is_stopped = False
        self._pool.resume()

    def interrupt(self) -> None:
        self._pool.interrupt(list(self._under_way.values()))

    async def close(self) -> None:
        self.stop()
        self._pool.close(list(self._under_way.values()))
