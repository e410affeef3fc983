"""One run of a map: its items, their calls, and what became of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import MapError
from opero.executors.call import AsyncHost, Outcome
from opero.parallel.batch import BatchRule
from opero.parallel.progress import progress_bar
from opero.policies.fallback import FallbackPolicy
from opero.policies.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opero.cache.entries import Entry
    from opero.executors.cache import CacheExecutor
    from opero.executors.call import Call
    from opero.parallel.mapping import Mapper

__all__ = ["Run", "worker_count"]

SAMPLE_SECONDS = 0.02
SAMPLE_ITEMS = 16
WORTH_PROCESSES = 0.5
"""Seconds of computing still to do, from which on starting worker processes pays."""


def _without_result(policy: Policy) -> Policy:
    fallback = policy.active("fallback")
    if fallback is None or not fallback.has_result:
        return policy
    arg = FallbackPolicy(arg=fallback.arg) if fallback.arg is not None else None
    return Policy(retry=policy.retry, timeout=policy.timeout, fallback=arg)


def worker_count(workers: int | str, mode: str) -> int:
    """How many items at a time: the number itself, or what suits the mode."""
    if isinstance(workers, int):
        return workers
    from joblib import cpu_count

    cores: int = cpu_count()
    return {"process": max(1, cores - 1), "async": 100}.get(mode, min(32, (os.cpu_count() or cores) + 4))


class Run:
    """One run of a map: its items, their calls, and what became of them."""

    def __init__(self, mapper: Mapper, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.mapper = mapper
        self.binding = mapper.binding
        self.chain = self.binding.resolved()
        self.policy = mapper.parallel(self.chain)
        self.mode = mapper.mode_for(self.chain)
        self.rule = BatchRule(self.binding.function, mapper.position, self.policy.batch)
        self.before = args[: mapper.position]
        self.after = args[mapper.position + 1 :]
        self.kwargs = dict(kwargs)
        self.items = self._listed(args)
        self.outcomes: dict[int, Outcome] = {}
        self.cache = self.chain.cache
        self.keys: list[Any] = []
        self.stale: dict[int, Entry] = {}
        self.all_cached: list[Any] | None = None
        self.unwritten: list[tuple[int, Outcome]] | None = None
        self.repeats: dict[int, list[int]] = {}
        self.fell_back: set[int] = set()
        self.tick: Callable[[int], object] = lambda done: None

    def _listed(self, args: tuple[Any, ...]) -> list[Any]:
        position, name = self.mapper.position, self.rule.parameter.name if self.rule.parameter is not None else "items"
        if len(args) > position:
            items = args[position]
        elif name in self.kwargs:
            items = self.kwargs.pop(name)
        else:
            raise TypeError(f"{self.binding.name} is mapped over items and got none: pass an iterable")
        if isinstance(items, str | bytes | bytearray):
            raise TypeError(
                f"{self.binding.name} is mapped over items and got the bare {type(items).__name__} {items!r:.60}; "
                "wrap it in a list, or pass list(text) for its characters"
            )
        if not isinstance(items, Iterable):
            raise TypeError(f"{self.binding.name} is mapped over items, and {items!r:.60} is not iterable; pass a list")
        return list(items)

    def arguments(self, item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call for an item, or for a batch."""
        return (*self.before, item, *self.after), self.kwargs

    # The map

    def run(self) -> list[Any]:
        """All results, in threads, processes or both."""
        with progress_bar(self.policy.progress, self.binding.name, len(self.items)) as self.tick:
            if self.cache is not None:
                self._answer_from(self._entries(self.cache))
            units = self._units(self._pending())
            if self.mode == "auto":
                units = self._sample(units)
            for unit, outcome in self._run_units(units):
                self._take(unit, self._fall_back(unit, outcome))
        return self._results()

    async def run_async(self) -> list[Any]:
        """All results, in the running event loop."""
        from opero.parallel.event_loop import map_in_tasks

        host = AsyncHost(self.binding.clock)
        with progress_bar(self.policy.progress, self.binding.name, len(self.items)) as self.tick:
            shared = self.cache is not None and self.cache.is_shared
            if self.cache is not None:
                entries = self._entries(self.cache)
                self._answer_from(await host.offload(list, entries) if shared else entries)
            self.unwritten = [] if shared else None
            units = self._units(self._pending())
            await map_in_tasks(
                self._call,
                units,
                self._workers(),
                self._take,
                keep_going=self.policy.on_error != "raise",
                settle=partial(host.offload, self._write_rest) if shared else None,
            )
        return self._results()

    def _run_units(self, units: list[list[int]]) -> Iterator[tuple[list[int], Outcome]]:
        keep_going = self.policy.on_error != "raise"
        if self.mode == "process":
            keep_going = keep_going or self._falls_back_here or bool(self.stale)
            from opero.parallel.processes import Rest, map_in_processes

            inner = Policy(**{kind: getattr(self.chain.policy, kind) for kind in ("retry", "timeout", "fallback")})
            if self.cache is not None:
                inner = _without_result(inner)  # it answers here, where it can be told from what is to be kept
            done = map_in_processes(
                self.binding,
                inner,
                Rest(self.before, self.after, self.kwargs),
                units,
                self._workers(),
                argument=self._argument,
                keep_going=keep_going,
            )
        else:
            from opero.parallel.threads import map_in_threads

            done = map_in_threads(self._call, units, self._workers(), keep_going=keep_going)
        for position, outcome in done:
            yield units[position], outcome

    def _call(self, unit: list[int]) -> Any:
        """Call the function for a unit, beside the cache, which the map reads and fills itself."""
        args, kwargs = self.arguments(self._argument(unit))
        if self.cache is None:
            return self.mapper.single(*args, **kwargs)
        self.binding.stats.calls += 1
        call = self.chain.call()
        if self.binding.is_async:
            return self._finish(unit, call, self.chain.whole(call, args, kwargs))
        try:
            return self.chain.whole(call, args, kwargs)
        except Exception:
            if self._has_old(unit):
                return self._old(unit)
            self.binding.stats.failures += 1
            raise
        finally:
            self.fell_back.update(unit if call.fell_back else ())

    async def _finish(self, unit: list[int], call: Call, result: Any) -> Any:
        try:
            return await result
        except Exception:
            if self._has_old(unit):
                return self._old(unit)
            self.binding.stats.failures += 1
            raise
        finally:
            self.fell_back.update(unit if call.fell_back else ())

    def _has_old(self, unit: list[int]) -> bool:
        """Whether the cache has old results that may stand in for a unit's new ones."""
        return bool(self.stale) and all(index in self.stale for index in unit)

    def _old(self, unit: list[int]) -> Any:
        """A unit's old results, which are not kept as new ones."""
        self.fell_back.update(unit)
        values = [self.stale[index].value for index in unit]
        return values if self.in_batches else values[0]

    @property
    def _falls_back_here(self) -> bool:
        """Whether failures of worker processes are answered here: where the cache must not keep the answer."""
        return self.mode == "process" and self.cache is not None and "fallback" in self.chain.executors

    def _fall_back(self, unit: list[int], outcome: Outcome) -> Outcome:
        """What a worker process left to this one: the fallback result of a unit that failed there."""
        if outcome.error is not None and self._has_old(unit):
            self.binding.stats.failures -= 1
            return Outcome(self._old(unit))
        if outcome.error is None or not self._falls_back_here:
            return outcome
        self.fell_back.update(unit)
        self.binding.stats.failures -= 1
        args, kwargs = self.arguments(self._argument(unit))
        try:
            return Outcome(self.chain.executors["fallback"].answer(self.chain.call(), args, kwargs, outcome.error))
        except Exception as error:  # noqa: BLE001  # the fallback's own
            self.binding.stats.failures += 1
            return Outcome(error=error)

    def _workers(self) -> int:
        return worker_count(self.policy.workers, self.mode)

    # Units: an item each, or a batch

    @property
    def in_batches(self) -> bool:
        """Whether a call receives a list of items."""
        return bool(self.items) and self.rule.applies(self.items[0])

    def _units(self, pending: list[int]) -> list[list[int]]:
        if not self.in_batches:
            return [[index] for index in pending]
        size = self.policy.batch_size or max(1, -(-len(pending) // (self._workers() * 4)))
        return [pending[start : start + size] for start in range(0, len(pending), size)]

    def _argument(self, unit: list[int]) -> Any:
        return [self.items[index] for index in unit] if self.in_batches else self.items[unit[0]]

    def _take(self, unit: list[int], outcome: Outcome) -> None:
        """Note what became of a unit's items, and keep it in the cache."""
        if outcome.error is None and self.in_batches:
            try:
                values = self.rule.check(outcome.value, unit)
            except ValueError as error:
                outcome, values = Outcome(error=error), []
        else:
            values = [outcome.value]
        for position, index in enumerate(unit):
            self._note(index, outcome if outcome.error is not None else Outcome(values[position]))

    def _note(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        if self.cache is not None:
            self._keep(index, outcome)
        repeats = self.repeats.get(index, ())
        for repeat in repeats:
            self._answer(repeat, outcome)
        self.tick(1)

    # The cache: one for all workers, read and filled here

    def _entries(self, cache: CacheExecutor) -> Iterable[Entry | None]:
        """What the cache has for each item."""
        before, after, kwargs, make = self.before, self.after, self.kwargs, cache.key.of
        self.keys = [make(*before, item, *after, **kwargs) for item in self.items]
        return cache.read_many(self.keys, lambda index: self.arguments(self.items[index]))

    def _answer_from(self, entries: Iterable[Entry | None]) -> None:
        """Answer what the cache has. An item that comes twice is computed once, as in calls one by one."""
        cache = self.cache
        assert cache is not None
        now = cache.store.now()
        entries = list(entries)
        values = [entry.value for entry in entries if entry is not None and entry.until > now]
        if len(values) == len(entries):  # then nothing is left to do or to put in order
            self.all_cached = values
            self._count_hits(len(values))
            return
        first: dict[Any, int] = {}
        outcomes, keys, hits = self.outcomes, self.keys, 0
        for index, entry in enumerate(entries):
            if entry is not None:
                if entry.until > now:
                    outcomes[index] = Outcome(entry.value)
                    hits += 1
                    continue
                if entry.expires > now:
                    self._answer(index, cache.outcome(entry))
                    continue
                self.stale[index] = entry
            key = keys[index]
            if key in first:
                self.repeats.setdefault(first[key], []).append(index)
            else:
                first[key] = index
                self.binding.stats.cache_misses += 1
        self._count_hits(hits)

    def _count_hits(self, hits: int) -> None:
        self.tick(hits)
        self.binding.stats.calls += hits
        self.binding.stats.cache_hits += hits

    def _keep(self, index: int, outcome: Outcome) -> None:
        """Keep an item's outcome in the cache."""
        if index not in self.fell_back:
            if self.unwritten is not None:
                self.unwritten.append((index, outcome))
            else:
                self._write(index, outcome)

    def _write(self, index: int, outcome: Outcome) -> None:
        assert self.cache is not None
        self.cache.keep(self.keys[index], outcome, self.cache.retention.tags(*self.arguments(self.items[index])))

    def _write_rest(self) -> None:
        """Write what has come since; never in an event loop's thread."""
        while self.unwritten:
            try:
                waiting = self.unwritten.pop()
            except IndexError:  # another thread has taken it
                return
            self._write(*waiting)

    def _answer(self, index: int, outcome: Outcome) -> None:
        """An item that needs no call of its own."""
        self.outcomes[index] = outcome
        self.tick(1)
        self.binding.stats.calls += 1
        self.binding.stats.cache_hits += outcome.error is None

    def _pending(self) -> list[int]:
        """The items that need a call."""
        if self.all_cached is not None:
            return []
        waiting = {index for repeats in self.repeats.values() for index in repeats}
        return [index for index in range(len(self.items)) if index not in self.outcomes and index not in waiting]

    # Auto

    def _sample(self, units: list[list[int]]) -> list[list[int]]:
        """Run the first units here, and choose the mode by whether they computed or waited; what is left to do."""
        started, computed = time.perf_counter(), time.thread_time()
        done = 0
        stop = False
        while done < min(len(units), SAMPLE_ITEMS) and not stop and time.perf_counter() - started < SAMPLE_SECONDS:
            unit = units[done]
            done += 1
            try:
                outcome = Outcome(self._call(unit))
            except Exception as error:  # noqa: BLE001  # carried as a value
                outcome = Outcome(error=error)
                stop = self.policy.on_error == "raise"
            self._take(unit, outcome)
        seconds, computed = time.perf_counter() - started, time.thread_time() - computed
        left = units[done:] if not stop else []
        computing = computed > seconds / 2 and computed / max(done, 1) * len(left) > WORTH_PROCESSES
        self.mode = "process" if computing and not self.mapper.shared_kinds(self.chain) else "thread"
        return left

    # Results

    def _results(self) -> list[Any]:
        if self.all_cached is not None:
            return self.all_cached
        failures = {at: each.error for at, each in self.outcomes.items() if each.error is not None}
        failures = {at: failures[at] for at in sorted(failures)}
        if failures and self.policy.on_error == "raise":
            results = {index: each.value for index, each in sorted(self.outcomes.items()) if each.error is None}
            missing = len(self.items) - len(self.outcomes)
            first, error = next(iter(failures.items()))
            raise MapError(
                f"{self.binding.name}: {len(failures)} of {len(self.items)} items failed, {len(results)} succeeded"
                f"{f', {missing} were not begun' if missing else ''}; item {first}: {type(error).__name__}: {error}",
                results,
                failures,
            )
        order = sorted(self.outcomes) if self.policy.ordered else list(self.outcomes)
        skip = self.policy.on_error == "skip"
        return [
            outcome.value if outcome.error is None else outcome.error
            for outcome in (self.outcomes[index] for index in order)
            if outcome.error is None or not skip
        ]
