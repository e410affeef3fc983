"""What executors need of every home of their state: this process, a locked file, redis, and one made for this test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from executors.state.dict_homes import Server, home_on
from opero import BulkheadFullError, CircuitOpenError, Policy, RateLimitExceededError, RateLimitPolicy
from opero.executors.feedback import pause
from opero.executors.state.circuit import enter
from opero.executors.state.redis_budget import RedisBudget
from opero.executors.state.redis_store import store_of
from opero.executors.state.sharing import share_limits
from opero.runtime.state_file import StateFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WAIT = 30
"""Seconds after which a test has hung."""
KINDS = ["rate_limit", "circuit_breaker", "bulkhead"]
IN_REDIS = ["rate_limit"]


def work(value: Any = None) -> Any:
    return value() if callable(value) else value


async def work_async(value: Any = None) -> Any:
    return await value() if callable(value) else value


def fails() -> None:
    raise ConnectionError("down")


async def fails_async() -> None:
    raise ConnectionError("down")


def executor_of(bound: Any, kind: str) -> Any:
    executor = bound.binding.resolved().executors["values" if kind == "fallback" else kind]
    return getattr(executor, "limiter", executor)


class Homes:
    """Binds functions whose limits have one state, in homes of one sort."""

    def __init__(self, sort: str, folder: Path, url: str = "") -> None:
        self.sort = sort
        self.url = url
        self.folder = folder
        self.server = Server()
        self.moved: dict[str, Any] = {}

    def bind(self, function: Any = work, **policies: Any) -> Any:
        """A function with these limits. Another one, as another process would have it, joins the same state."""
        bound: Any = Policy.model_validate(policies).apply(function)
        for kind in policies:
            self.place(kind, executor_of(bound, kind))
        return bound

    def place(self, kind: str, executor: Any) -> None:
        if self.sort == "process":
            if kind in self.moved:
                executor.join(self.moved[kind].home.successor)
            self.moved.setdefault(kind, executor)
            return
        home = self.home(kind, executor)
        if kind in self.moved:
            executor.join(home)
        else:
            self.moved[kind] = executor
            executor.move_to(home)

    def home(self, kind: str, executor: Any) -> Any:
        if self.sort == "redis" and kind in IN_REDIS:
            return self.in_redis(executor)
        if self.sort in ("dictionary", "redis"):
            return home_on(self.server, executor)
        from opero.executors.state.sharing import file_home

        if kind in self.moved:
            return file_home(kind, executor, StateFile(self.moved[kind].home.successor.file.path))
        return file_home(kind, executor, StateFile.create(self.folder / kind, 1 << 16))

    def in_redis(self, executor: Any) -> Any:
        store = store_of(RateLimitPolicy(rate=1, share="redis", url=self.url, store_timeout=10), "work: rate_limit")
        server, run = self.server, store.run

        def noting(*args: Any) -> Any:
            server.threads.add(threading.get_ident())
            return run(*args)

        store.run = noting  # type: ignore[method-assign]
        return RedisBudget(store, "work", executor.policy, executor.own, "work")


@pytest.fixture(params=["process", "file", "dictionary", "redis"])
def homes(request: pytest.FixtureRequest, tmp_path: Path) -> Homes:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Homes(request.param, tmp_path, url)


remote = pytest.mark.parametrize("homes", ["dictionary", "redis"], indirect=True)
"""Homes that block."""


def until(condition: Callable[[], Any], seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# Values of a fallback argument


class DeniedError(Exception):
    status_code = 401


def asking(asked: list[str], *, fails: bool = True) -> Any:
    def ask(key: str) -> str:
        asked.append(key)
        if fails and key == "dead":
            raise DeniedError
        return key

    return ask


def asking_async(asked: list[str]) -> Any:
    async def ask(key: str) -> str:
        return asking(asked)(key)  # type: ignore[no-any-return]

    return ask


def test_what_one_holder_learns_of_a_value_holds_for_all(homes: Homes) -> None:
    asked: list[str] = []
    one, other = (homes.bind(asking(asked), fallback={"arg": "key"}) for _ in range(2))
    assert [each(["dead", "b"]) for each in (one, other, one, other)] == ["b"] * 4
    assert asked == ["dead", *"bbbb"]


def test_what_one_async_holder_learns_of_a_value_holds_for_all(homes: Homes) -> None:
    asked: list[str] = []
    one, other = (homes.bind(asking_async(asked), fallback={"arg": "key"}) for _ in range(2))

    async def main() -> None:
        homes.server.threads.clear()
        assert [await each(["dead", "b"]) for each in (one, other, one, other)] == ["b"] * 4

    asyncio.run(main())
    assert asked == ["dead", *"bbbb"]
    assert threading.get_ident() not in homes.server.threads


def test_a_value_that_works_again_does_so_for_all_holders(homes: Homes) -> None:
    asked: list[str] = []
    fallback = {"arg": "key", "remember": "50ms"}
    one, other = homes.bind(asking(asked), fallback=fallback), homes.bind(asking(asked, fails=False), fallback=fallback)
    assert one(["dead", "b"]) == "b"
    time.sleep(0.06)
    assert other(["dead", "b"]) == "dead"
    with pytest.raises(DeniedError):
        one(["dead"])
    assert other(["dead", "b"]) == "dead"


@pytest.mark.parametrize("order", ["round_robin", "weighted", "least_loaded"])
def test_holders_share_the_values_out_together(homes: Homes, order: str) -> None:
    asked: list[str] = []
    weights = {"weights": [1, 1, 1]} if order == "weighted" else {}
    fallback = {"arg": "key", "order": order, **weights}
    both = [homes.bind(asking(asked), fallback=fallback) for _ in range(2)]
    for number in range(90):
        both[number % 2](["a", "b", "c"])
    assert all(abs(asked.count(key) - 30) <= 2 for key in "abc")


def test_calls_in_flight_count_for_all_holders(homes: Homes) -> None:
    both = [homes.bind(streaming, fallback={"arg": "key", "order": "least_loaded"}) for _ in range(2)]
    for _ in range(3):
        list(both[0](["a", "b", "c"]))
    running = [both[number % 2](["a", "b", "c"]) for number in range(3)]
    assert sorted(next(each) for each in running) == ["a", "b", "c"]
    used = next(running[0], None)
    running[0].close()
    last = both[1](["a", "b", "c"])
    assert next(last) == used


def streaming(key: str) -> Any:
    yield key
    yield key


# Rate limit


def test_permits_of_all_holders_come_from_one_budget(homes: Homes) -> None:
    limit = {"rate": 0.01, "burst": 3, "max_wait": 0}
    one, other = homes.bind(rate_limit=limit), homes.bind(rate_limit=limit)
    one(), other(), one()
    for bound in (one, other):
        with pytest.raises(RateLimitExceededError) as caught:
            bound()
        assert caught.value.retry_in == pytest.approx(100, abs=5)


def refused_for(bound: Any) -> float:
    with pytest.raises(RateLimitExceededError, match="the service has asked for a pause") as caught:
        bound()
    assert caught.value.retry_in is not None
    return caught.value.retry_in


def test_a_pause_holds_for_all_holders_through_new_policies_and_moves(homes: Homes) -> None:
    limit = {"rate": 10, "burst": 3, "max_wait": 0}
    one, other = homes.bind(rate_limit=limit), homes.bind(rate_limit=limit)
    one(), other()
    pause(executor_of(one, "rate_limit"), 100, "HTTP 429")
    pause(executor_of(other, "rate_limit"), 50, "HTTP 429")
    for bound in (one, other):
        assert refused_for(bound) == pytest.approx(100, abs=5)
    one.binding.swap(Policy.model_validate({"rate_limit": {**limit, "rate": 20, "burst": 1}}))
    for bound in (one, other):
        assert refused_for(bound) == pytest.approx(100, abs=5)
    executor = executor_of(one, "rate_limit")
    if executor.home is not executor.own:
        executor.move_to(executor.own)
    assert refused_for(one) == pytest.approx(100, abs=5)


def test_a_new_policy_keeps_the_next_permit_and_applies_to_all_holders(homes: Homes) -> None:
    limit = {"rate": 0.01, "burst": 2, "max_wait": 0}
    one, other = homes.bind(rate_limit=limit), homes.bind(rate_limit=limit)
    one(), other()
    one.binding.swap(Policy.model_validate({"rate_limit": {**limit, "rate": 0.02}}))
    for bound in (one, other):
        with pytest.raises(RateLimitExceededError) as caught:
            bound()
        assert caught.value.retry_in == pytest.approx(100, abs=5)


def test_a_reservation_that_is_given_up_is_given_back(homes: Homes) -> None:
    bound = homes.bind(rate_limit={"rate": 0.5, "max_wait": None})
    executor = executor_of(bound, "rate_limit")
    bound()

    async def main() -> None:
        other = Policy.model_validate({"rate_limit": {"rate": 0.5, "max_wait": None}}).apply(work_async)
        executor_of(other, "rate_limit").migrate_from(executor)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await other()

    asyncio.run(main())
    until(lambda: executor.wait_at(time.monotonic(), 1.0) <= 2)  # a home that blocks hears of it in another thread


# Circuit breaker


def test_failures_reported_by_any_holder_open_the_circuit_for_all(homes: Homes) -> None:
    one, other = homes.bind(circuit_breaker=3), homes.bind(circuit_breaker=3)
    for bound in (one, other, one):
        with pytest.raises(ConnectionError):
            bound(fails)
    for bound in (one, other):
        with pytest.raises(CircuitOpenError, match="it opened after ConnectionError: down"):
            bound()


def test_a_success_reported_by_any_holder_ends_the_row_of_failures(homes: Homes) -> None:
    one, other = homes.bind(circuit_breaker=2), homes.bind(circuit_breaker=2)
    for bound in (one, other):
        with pytest.raises(ConnectionError):
            one(fails)
        bound()
    assert executor_of(other, "circuit_breaker").state == "closed"


def test_a_window_and_probes_are_shared(homes: Homes) -> None:
    policy = {"failure_rate": 0.5, "window": 10, "min_calls": 4, "open_for": 0.02}
    one, other = homes.bind(circuit_breaker=policy), homes.bind(circuit_breaker=policy)
    one(), other()
    for bound in (one, other):
        with pytest.raises(ConnectionError):
            bound(fails)
    assert executor_of(one, "circuit_breaker").state in ("open", "half_open")  # a busy machine takes its time
    until(lambda: executor_of(other, "circuit_breaker").state == "half_open")
    refused: list[Any] = []

    def probe() -> None:
        with pytest.raises(CircuitOpenError) as caught:
            one()
        refused.append(caught.value)

    other(probe)
    assert len(refused) == 1
    assert executor_of(one, "circuit_breaker").state == "closed"


def test_a_forced_circuit_is_forced_for_all_through_a_new_policy(homes: Homes) -> None:
    one, other = homes.bind(circuit_breaker=3), homes.bind(circuit_breaker=3)
    executor_of(other, "circuit_breaker").force_open()
    one.binding.swap(Policy.model_validate({"circuit_breaker": {"consecutive_failures": 4}}))
    for bound in (one, other):
        assert executor_of(bound, "circuit_breaker").state == "forced_open"
        with pytest.raises(CircuitOpenError):
            bound()


# Bulkhead


def test_slots_are_those_of_all_holders(homes: Homes) -> None:
    one, other = homes.bind(bulkhead=2), homes.bind(bulkhead=2)

    def inner() -> Any:
        with pytest.raises(BulkheadFullError, match="work: bulkhead full: 2 of 2 slots in use"):
            one()
        one.binding.swap(Policy.model_validate({"bulkhead": 3}))
        one()
        return executor_of(other, "bulkhead").running

    assert one(lambda: other(inner)) == 2
    assert [executor_of(each, "bulkhead").running for each in (one, other)] == [0, 0]


def test_waiting_threads_and_tasks_get_slots_in_the_order_in_which_they_came(homes: Homes) -> None:
    policy = {"max_concurrent": 1, "max_wait": None}
    bound, order, go_on = homes.bind(bulkhead=policy), [], threading.Event()
    bulkhead = executor_of(bound, "bulkhead")
    tasks: Any = Policy.model_validate({"bulkhead": {"max_concurrent": 1, "max_wait": 60}}).apply(work_async)
    executor_of(tasks, "bulkhead").migrate_from(bulkhead)

    def note(number: int) -> Callable[[], None]:
        return lambda: order.append(number)

    async def note_async(number: int) -> None:
        order.append(number)

    threads = [threading.Thread(target=bound, args=(lambda: go_on.wait(WAIT),))]
    threads[0].start()
    until(lambda: bulkhead.running == 1)
    for number in range(6):
        target: Any = (
            (lambda number=number: bound(note(number)))
            if number % 2
            else (lambda number=number: asyncio.run(tasks(lambda: note_async(number))))
        )
        threads.append(threading.Thread(target=target))
        threads[-1].start()
        until(lambda number=number: len(bulkhead.home.successor.queue) == number + 1)  # type: ignore[misc]
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert order == list(range(6))
    assert bulkhead.running == 0


def test_a_waiting_call_that_gives_up_or_is_cancelled_leaves_the_queue(homes: Homes) -> None:
    bound = homes.bind(work_async, bulkhead={"max_concurrent": 1, "max_wait": 0.05})
    bulkhead = executor_of(bound, "bulkhead")

    async def main() -> None:
        held = asyncio.Event()
        first = asyncio.create_task(bound(held.wait))
        await asyncio.sleep(0.02)
        with pytest.raises(BulkheadFullError, match="in the queue"):
            await bound()
        cancelled = asyncio.create_task(bound())
        while not bulkhead.home.successor.queue:
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        while bulkhead.home.successor.queue:  # a home that blocks is left in another thread
            await asyncio.sleep(0.001)
        held.set()
        await first
        await bound()

    asyncio.run(main())
    assert bulkhead.running == 0


def test_waiting_calls_get_slots_when_a_new_policy_has_more(homes: Homes) -> None:
    bound = homes.bind(bulkhead={"max_concurrent": 1, "max_wait": None})
    bulkhead, go_on = executor_of(bound, "bulkhead"), threading.Event()
    threads = [threading.Thread(target=bound, args=(lambda: go_on.wait(WAIT),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(bulkhead.home.successor.queue) == 2)
    bound.binding.swap(Policy.model_validate({"bulkhead": {"max_concurrent": 3, "max_wait": None}}))
    until(lambda: bulkhead.running == 3)
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert bulkhead.running == 0


# Moves


def test_calls_that_wait_go_along_when_the_slots_move(homes: Homes) -> None:
    bound: Any = Policy.model_validate({"bulkhead": {"max_concurrent": 1, "max_wait": None}}).apply(work)
    bulkhead, go_on, order = executor_of(bound, "bulkhead"), threading.Event(), []
    threads = [threading.Thread(target=bound, args=(lambda: go_on.wait(WAIT),))]
    threads[0].start()
    until(lambda: bulkhead.running == 1)
    for number in range(3):
        threads.append(threading.Thread(target=bound, args=(lambda number=number: order.append(number),)))
        threads[-1].start()
        until(lambda number=number: len(bulkhead.home.queue) == number + 1)  # type: ignore[misc]
    homes.place("bulkhead", bulkhead)
    assert (bulkhead.running, len(bulkhead.home.successor.queue)) == (1, 3)
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert order == [0, 1, 2]
    assert bulkhead.running == 0


def test_a_state_that_moves_back_into_this_process_is_as_it_was(homes: Homes, tmp_path: Path) -> None:
    """A home of any sort can be left again, for example when its server is configured away."""
    bound: Any = homes.bind(rate_limit={"rate": 0.01, "burst": 3, "max_wait": 0}, circuit_breaker=2, bulkhead=2)
    with pytest.raises(ConnectionError):
        bound(fails)
    assert executor_of(bound, "bulkhead").take()
    for kind in KINDS:
        executor = executor_of(bound, kind)
        if executor.home is not executor.own:
            executor.move_to(executor.own)
        assert executor.home is executor.own
    with pytest.raises(ConnectionError):
        bound(fails)
    assert executor_of(bound, "circuit_breaker").state == "open"
    executor_of(bound, "circuit_breaker").reset()
    assert executor_of(bound, "bulkhead").running == 1
    bound()
    executor_of(bound, "circuit_breaker").reset()
    with pytest.raises(RateLimitExceededError):
        bound()


@pytest.mark.parametrize("_", range(3))
def test_threads_lose_nothing_while_the_state_moves_and_policies_change(homes: Homes, _: int) -> None:
    def policy(number: int) -> Any:
        return Policy.model_validate(
            {
                "rate_limit": {"rate": 0.001, "burst": 200 + number % 2, "max_wait": 0},
                "bulkhead": {"max_concurrent": 2 + number % 2, "max_wait": None},
                "circuit_breaker": {"consecutive_failures": 10**6 + number},
            }
        )

    bound: Any = policy(0).apply(work)
    numbers, barrier = itertools.count(), threading.Barrier(5)

    def use() -> None:
        barrier.wait(WAIT)
        for _ in range(80):
            with contextlib.suppress(RateLimitExceededError):
                bound(lambda: next(numbers))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait(WAIT)
    for number in range(1, 20):
        bound.binding.swap(policy(number))
        if number == 7:
            for kind in KINDS:
                homes.place(kind, executor_of(bound, kind))
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert next(numbers) == 200
    assert executor_of(bound, "bulkhead").running == 0
    assert not executor_of(bound, "bulkhead").home.successor.queue


@remote
def test_a_function_whose_state_has_a_home_of_another_sort_needs_no_file_for_its_worker_processes(
    homes: Homes,
    tmp_path: Path,
) -> None:
    bound = homes.bind(rate_limit=10.0, circuit_breaker=5, bulkhead=2)
    assert share_limits(bound.binding.resolved().executors, "work", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# Homes that block


@remote
def test_an_event_loop_never_waits_for_a_home_that_blocks(homes: Homes) -> None:
    policy = {
        "rate_limit": {"rate": 500.0, "burst": 2, "max_wait": None},
        "circuit_breaker": {"failure_rate": 1.0, "min_calls": 3, "open_for": 0.1},
        "bulkhead": {"max_concurrent": 1, "max_wait": None},
    }
    bound = homes.bind(work_async, **policy)
    breaker = executor_of(bound, "circuit_breaker")
    homes.server.threads.clear()

    async def main() -> None:
        results = await asyncio.gather(*(bound(fails_async) for _ in range(3)), return_exceptions=True)
        assert {type(each) for each in results} == {ConnectionError}
        with pytest.raises(CircuitOpenError):
            await bound()
        await asyncio.sleep(0.11)
        await bound()

    asyncio.run(asyncio.wait_for(main(), WAIT))
    assert homes.server.threads
    assert threading.get_ident() not in homes.server.threads
    assert breaker.state == "closed"
    assert executor_of(bound, "bulkhead").running == 0


@remote
def test_a_home_that_blocks_is_asked_for_a_slot_even_by_tasks_that_may_not_wait(homes: Homes) -> None:
    bound = homes.bind(work_async, bulkhead=1)

    async def main() -> None:
        held = asyncio.Event()
        first = asyncio.create_task(bound(held.wait))
        await asyncio.sleep(0.05)
        with pytest.raises(BulkheadFullError):
            await bound()
        held.set()
        await first
        await bound()

    homes.server.threads.clear()
    asyncio.run(main())
    assert threading.get_ident() not in homes.server.threads


@remote
@pytest.mark.parametrize("moment", range(6))
def test_a_task_that_is_cancelled_while_a_home_blocks_keeps_nothing(homes: Homes, moment: int) -> None:
    """Whatever the operation under way is, and whether it ends before the task hears of it or after."""
    bound = homes.bind(
        work_async,
        rate_limit={"rate": 0.001, "burst": 3, "max_wait": None},
        circuit_breaker={"consecutive_failures": 1, "open_for": 0.001},
        bulkhead={"max_concurrent": 1, "max_wait": None},
    )
    breaker = executor_of(bound, "circuit_breaker")
    bulkhead = executor_of(bound, "bulkhead")
    breaker.change(enter, "open", time.monotonic() - 1)

    async def main() -> None:
        task = asyncio.create_task(bound(lambda: asyncio.sleep(WAIT)))
        with homes.server.lock:  # which makes whatever it does next block in its thread
            for _ in range(moment):
                await asyncio.sleep(0.001)
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    def probes() -> int:
        return int(breaker.change(lambda circuit: circuit.probes_begun))

    until(lambda: (bulkhead.running, probes()) == (0, 0))
    assert not bulkhead.home.queue
    budget = executor_of(bound, "rate_limit")
    until(lambda: budget.wait_at(time.monotonic(), 3.0) < 1.0 or moment > 2)


@remote
def test_a_task_that_is_cancelled_while_it_waits_for_a_permit_gives_it_back(homes: Homes) -> None:
    bound = homes.bind(work_async, rate_limit={"rate": 0.1, "max_wait": None})

    async def main() -> None:
        await bound()
        waiting = asyncio.create_task(bound())
        while not bound.stats.waits:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    budget = executor_of(bound, "rate_limit")
    until(lambda: budget.wait_at(time.monotonic(), 1.0) < 10.5)


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("has_global_lock", [True, False])
def test_a_forked_child_is_not_blocked_by_locks_that_threads_of_its_parent_hold(
    monkeypatch: pytest.MonkeyPatch, *, has_global_lock: bool
) -> None:
    monkeypatch.setattr("opero.executors.state.budget.HAS_GLOBAL_LOCK", has_global_lock)
    bound: Any = Policy.model_validate({"rate_limit": 1000.0, "circuit_breaker": 1, "bulkhead": 2}).apply(work)
    locked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for kind in KINDS:
                stack.enter_context(executor_of(bound, kind).own.lock)
            locked.set()
            go_on.wait(WAIT)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(WAIT)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            bound(1)
            with contextlib.suppress(ConnectionError):
                bound(fails)
            code = 0 if executor_of(bound, "circuit_breaker").state == "open" else 2
        finally:
            os._exit(code)
    try:
        ended: list[int] = []

        def has_ended() -> bool:
            found, status = os.waitpid(pid, os.WNOHANG)
            ended.extend([status] if found else [])
            return bool(found)

        until(has_ended, seconds=10)
        assert ended == [0]
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        go_on.set()
        holder.join(WAIT)
