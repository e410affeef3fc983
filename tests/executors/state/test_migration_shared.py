"""Reloads while processes share the limits: old and new policies, here and in workers, have one state in one file."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import BulkheadFullError, CircuitOpenError, Policy, RateLimitExceededError
from opero.bound import bind
from opero.executors.state.sharing import SharedLimits, share_limits
from opero.runtime.state_file import StateFile

if TYPE_CHECKING:
    from pathlib import Path

    from opero.executors.state.circuit import Circuit

WAIT = 30
"""Seconds after which a test has hung."""


def work(value: Any = None) -> Any:
    return value() if callable(value) else value


def fails(value: Any = None) -> Any:
    raise ConnectionError("down")


def executor_of(bound: Any, kind: str) -> Any:
    executor = bound.binding.resolved().executors[kind]
    return getattr(executor, "limiter", executor)


class Shared:
    """A function, and the same one as a worker process binds it, whose limits are shared."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.folder = folder
        self.here: Any = Policy.model_validate(policy).apply(work)
        self.there = self.in_worker()

    def in_worker(self) -> Any:
        """The function as a worker process binds it that starts now."""
        chain = self.here.binding.resolved()
        limits = share_limits(chain.executors, "work", self.folder)
        assert isinstance(limits, SharedLimits)
        return bind(chain.policy, work, provider=limits)

    def reload(self, **policy: Any) -> None:
        self.here.binding.swap(Policy.model_validate(policy))

    @property
    def files(self) -> int:
        return len(list(self.folder.iterdir()))


# Circuit breaker


def failing(*each: Any) -> None:
    for bound in each:
        with pytest.raises(ConnectionError):
            bound(fails)


def calls(circuit: Circuit) -> int:
    """How many calls the window holds."""
    return circuit.window.counts(0.0).calls


def state(bound: Any) -> str:
    found: str = executor_of(bound, "circuit_breaker").state
    return found


def test_an_open_circuit_stays_open_here_and_in_workers_of_both_policies(tmp_path: Path) -> None:
    shared = Shared(tmp_path, circuit_breaker=2)
    failing(shared.there)
    shared.reload(circuit_breaker={"consecutive_failures": 3, "open_for": 600})
    newer = shared.in_worker()
    failing(newer, shared.here)
    for bound in (shared.here, shared.there, newer):
        assert state(bound) == "open"
        with pytest.raises(CircuitOpenError):
            bound()
    executor_of(shared.there, "circuit_breaker").reset()
    assert (state(shared.here), shared.files) == ("closed", 1)


def test_workers_of_the_old_policy_fill_the_window_of_the_new_one(tmp_path: Path) -> None:
    shared = Shared(tmp_path, circuit_breaker=100)
    shared.reload(circuit_breaker={"failure_rate": 0.5, "min_calls": 6})
    shared.there(), shared.there(), shared.there()
    failing(shared.there, shared.there)
    assert state(shared.here) == "closed"
    failing(shared.here)
    assert state(shared.there) == "open"


@pytest.mark.parametrize("length", [100_000, "1h"])
def test_a_larger_window_makes_room_in_the_file_for_all(tmp_path: Path, length: Any) -> None:
    shared = Shared(tmp_path, circuit_breaker={"failure_rate": 1.0, "window": 10})
    failing(shared.there, shared.here)
    shared.reload(circuit_breaker={"failure_rate": 1.0, "window": length, "min_calls": 3})
    breaker = executor_of(shared.here, "circuit_breaker")

    def fill(circuit: Circuit) -> None:
        for number in range(120_000):
            circuit.window.add(0.0, failed=True, slow=bool(number % 3))

    kept = breaker.change(calls)
    if length == 100_000:
        breaker.change(fill)
    assert kept == (2 if length == 100_000 else 0)
    shared.there()
    newer = shared.in_worker()
    newer(), shared.here()
    assert breaker.change(calls) == (100_000 if length == 100_000 else 3)
    assert executor_of(newer, "circuit_breaker").change(calls) == (100_000 if length == 100_000 else 3)
    shared.reload(circuit_breaker={"failure_rate": 1.0, "window": 5})
    shared.there(), newer()
    assert executor_of(shared.here, "circuit_breaker").change(calls) == (5 if length == 100_000 else 2)


def test_where_the_disk_has_no_room_for_a_larger_window_it_holds_as_many_calls_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared(tmp_path, circuit_breaker={"failure_rate": 1.0, "window": 10})

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    shared.reload(circuit_breaker={"failure_rate": 1.0, "window": 500_000})
    breaker = executor_of(shared.here, "circuit_breaker")

    def fill(circuit: Circuit) -> None:
        for _ in range(20_000):
            circuit.window.add(0.0, failed=False, slow=False)

    breaker.change(fill)
    held = breaker.change(calls)
    assert 10 <= held < 8192
    shared.there(), shared.here()
    assert state(shared.there) == "closed"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 400)), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_every_reader_of_a_file_that_grows_finds_what_was_written_last(steps: list[tuple[int, int]]) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        files = [StateFile.create(Path(folder) / "state", 20)]
        files += [StateFile(files[0].path) for _ in range(2)]
        size, last = 20, b""
        for which, length in steps:
            with files[which] as file:
                if length > size:
                    with pytest.raises(ValueError, match="does not fit"):
                        file.write(b"x" * (size * 2 + 100))
                    size = file.grow(length + 40)
                    assert size >= length + 40
                last = bytes([length % 256]) * max(0, length - 20)
                file.write(last)
                file.number = float(length)
            for other in files:
                with other:
                    assert (other.read(), other.number) == (last, float(length))


# Rate limit


def test_the_budget_is_one_for_old_and_new_policy_here_and_in_workers(tmp_path: Path) -> None:
    limit = {"rate": 0.01, "burst": 5, "max_wait": 0}
    shared = Shared(tmp_path, rate_limit=limit)
    shared.here(), shared.there()
    shared.reload(rate_limit={**limit, "burst": 4})
    newer = shared.in_worker()
    newer(), shared.there(), shared.here()
    for bound in (shared.here, shared.there, newer):
        with pytest.raises(RateLimitExceededError):
            bound()
    assert shared.files == 1


def test_workers_of_the_old_policy_keep_to_the_rate_of_the_new_one(tmp_path: Path) -> None:
    shared = Shared(tmp_path, rate_limit=1000)
    shared.there()
    shared.reload(rate_limit=0.5)
    budgets = [
        executor_of(each, "rate_limit").home.successor for each in (shared.here, shared.there, shared.in_worker())
    ]
    now = executor_of(shared.here, "rate_limit").clock.monotonic() + 10
    assert [budget.book(now, 1.0, float("inf"))[0] for budget in budgets] == pytest.approx([0, 2, 4], abs=1e-6)
    shared.reload(rate_limit=10)
    assert budgets[1].book(now, 1.0, float("inf"))[0] == pytest.approx(6, abs=1e-6)
    assert budgets[2].book(now, 1.0, float("inf"))[0] == pytest.approx(6.1, abs=1e-6)


def test_a_limit_that_was_replaced_before_it_was_shared_is_shared_as_the_new_one(tmp_path: Path) -> None:
    policies = {"rate_limit": {"rate": 0.01, "burst": 3, "max_wait": 0}, "circuit_breaker": 3, "bulkhead": 2}
    bound: Any = Policy.model_validate(policies).apply(work)
    old = bound.binding.pipeline
    bound.binding.swap(Policy.model_validate({**policies, "rate_limit": {"rate": 0.02, "burst": 3, "max_wait": 0}}))
    bound()
    first = share_limits(old.executors, "work", tmp_path)  # a map that began before the reload
    second = share_limits(bound.binding.pipeline.executors, "work", tmp_path)
    assert first is not None
    assert second is not None
    assert first.paths == second.paths
    there = bind(old.policy, work, provider=first)
    there(), bound()
    for each in (bound, there):
        with pytest.raises(RateLimitExceededError):
            each()


# Bulkhead


def test_slots_are_held_and_counted_over_processes_and_policies(tmp_path: Path) -> None:
    shared = Shared(tmp_path, bulkhead=3)

    def inner() -> Any:
        shared.reload(bulkhead=2)
        bulkheads = [executor_of(each, "bulkhead") for each in (shared.here, shared.there, shared.in_worker())]
        assert [each.running for each in bulkheads] == [2, 2, 2]
        for bound in (shared.here, shared.there):
            with pytest.raises(BulkheadFullError, match="2 of 2 slots in use"):
                bound()
        shared.reload(bulkhead=4)
        shared.there(lambda: bulkheads[0].take() and bulkheads[0].leave())
        return bulkheads

    bulkheads = shared.here(lambda: shared.there(inner))
    assert [each.running for each in bulkheads] == [0, 0, 0]
    assert shared.files == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("again", [False, True])
def test_waiting_calls_get_slots_when_the_limit_is_raised(tmp_path: Path, when: str, *, again: bool) -> None:
    def policy(most: int, max_wait: float | None = None) -> Policy:
        return Policy.model_validate({"bulkhead": {"max_concurrent": most, "max_wait": max_wait}})

    bound: Any = policy(2).apply(work)
    more = bound.binding.prepare(policy(2))  # holds the executor of now
    bound.binding.swap(policy(1))
    has_slot, go_on, entered = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        has_slot.set()
        assert go_on.wait(WAIT)

    def enter() -> None:
        entered.set()
        assert go_on.wait(WAIT)

    def start(target: Any) -> threading.Thread:
        thread = threading.Thread(target=bound, args=(target,))
        thread.start()
        return thread

    if when == "after":
        share_limits(bound.binding.pipeline.executors, "work", tmp_path)
    threads = [start(hold)]
    assert has_slot.wait(WAIT)
    threads.append(start(enter))
    slots = executor_of(bound, "bulkhead").home.successor
    while not slots.queue:
        threading.Event().wait(0.001)
    if when == "before":
        share_limits(bound.binding.pipeline.executors, "work", tmp_path)
    bound.binding.enforce(more if again else bound.binding.prepare(policy(2, 0)))
    assert entered.wait(WAIT)
    assert executor_of(bound, "bulkhead").running == 2
    go_on.set()
    for thread in threads:
        thread.join(WAIT)
    assert executor_of(bound, "bulkhead").running == 0


# All


@pytest.mark.parametrize("kind", ["rate_limit", "circuit_breaker", "bulkhead"])
def test_a_new_executor_that_is_shared_already_gets_the_old_state_into_its_file(tmp_path: Path, kind: str) -> None:
    policies: Any = {
        "rate_limit": ({"rate": 0.01, "burst": 3, "max_wait": 0}, {"rate": 0.02, "burst": 3, "max_wait": 0}),
        "circuit_breaker": (1, 2),
        "bulkhead": (2, 1),
    }
    old, new = (Policy.model_validate({kind: each}).apply(work) for each in policies[kind])
    limits = share_limits(new.binding.resolved().executors, "work", tmp_path)  # type: ignore[attr-defined]
    there = bind(Policy.model_validate({kind: policies[kind][1]}), work, provider=limits)
    if kind == "circuit_breaker":
        failing(old)
    elif kind == "bulkhead":
        assert executor_of(old, kind).take()
    else:
        old(), old()
    executor_of(new, kind).migrate_from(executor_of(old, kind))
    if kind == "rate_limit":
        there()
    for bound in (old, new, there):
        with pytest.raises((CircuitOpenError, BulkheadFullError, RateLimitExceededError)):
            bound()
    if kind == "bulkhead":
        executor_of(old, kind).leave()
        assert executor_of(new, kind).running == 0
        there()


@pytest.mark.parametrize("_", range(3))
def test_under_threads_nothing_is_lost_while_limits_move_to_files_and_policies_are_replaced(
    _: int, tmp_path: Path
) -> None:
    def policy(number: int) -> Policy:
        return Policy.model_validate(
            {
                "rate_limit": {"rate": 0.001, "burst": 400 + number % 2, "max_wait": 0},
                "bulkhead": {"max_concurrent": 3 + number % 2, "max_wait": None},
                "circuit_breaker": {"consecutive_failures": 10**6 + number},
            }
        )

    bound: Any = policy(0).apply(work)
    taken: list[int] = []
    barrier = threading.Barrier(5)

    def use() -> None:
        barrier.wait(WAIT)
        count = 0
        for _ in range(150):
            try:
                bound()
                count += 1
            except RateLimitExceededError:
                pass
        taken.append(count)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait(WAIT)
    for number in range(1, 40):
        bound.binding.swap(policy(number))
        if number == 10:
            share_limits(bound.binding.pipeline.executors, "work", tmp_path)
    for thread in threads:
        thread.join(WAIT)
    assert sum(taken) == 400
    assert executor_of(bound, "bulkhead").running == 0
    assert len(executor_of(bound, "bulkhead").home.successor.queue) == 0


# Real workers


PROCESSES = {"mode": "process", "workers": 2, "progress": False, "on_error": "return", "batch_size": 1}


def test_worker_processes_and_reloads_have_one_budget_and_one_circuit() -> None:
    def policy(**limits: Any) -> Policy:
        return Policy.model_validate({"parallel": PROCESSES, "retry": {"retries": 0}, **limits})

    limit = {"rate": 0.001, "burst": 4, "max_wait": 0}
    bound: Any = policy(rate_limit=limit, circuit_breaker=3).apply(fails)
    failed = bound.map([1, 2])
    assert [type(each) for each in failed] == [ConnectionError] * 2
    bound.binding.swap(
        policy(rate_limit={**limit, "burst": 3}, circuit_breaker={"consecutive_failures": 3, "open_for": 90})
    )
    assert [type(each) for each in bound.map([3])] == [ConnectionError]  # the third in a row
    assert [type(each) for each in bound.map([4, 5])] == [CircuitOpenError] * 2
    assert executor_of(bound, "circuit_breaker").state == "open"
    executor_of(bound, "circuit_breaker").force_closed()
    bound.binding.swap(policy(rate_limit={**limit, "burst": 2}, circuit_breaker=5))
    failed = bound.map([6, 7, 8])
    assert sorted(type(each).__name__ for each in failed) == ["ConnectionError", *["RateLimitExceededError"] * 2]


def wait_and_fail(item: int, folder: str) -> None:
    from pathlib import Path

    (Path(folder) / f"began-{item}").touch()
    while not (Path(folder) / "go").exists():
        threading.Event().wait(0.005)
    raise ConnectionError


def test_a_map_that_began_before_the_reload_counts_for_the_new_policy(tmp_path: Path) -> None:
    def policy(**breaker: Any) -> Policy:
        return Policy.model_validate(
            {"parallel": PROCESSES, "circuit_breaker": {"consecutive_failures": 2, **breaker}, "bulkhead": 5}
        )

    bound: Any = policy().apply(wait_and_fail)
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.extend(bound.map([1, 2], str(tmp_path))))
    thread.start()
    while len(list(tmp_path.glob("began-*"))) < 2:
        threading.Event().wait(0.005)
    bound.binding.swap(policy(open_for=900))
    assert executor_of(bound, "bulkhead").running == 2
    assert executor_of(bound, "circuit_breaker").state == "closed"
    (tmp_path / "go").touch()
    thread.join(WAIT)
    assert [type(each) for each in ended] == [ConnectionError] * 2
    assert executor_of(bound, "circuit_breaker").state == "open"
    assert executor_of(bound, "bulkhead").running == 0
    with pytest.raises(CircuitOpenError) as caught:
        bound(3, str(tmp_path))
    assert (caught.value.retry_in or 0) > 700


def test_tasks_that_wait_for_shared_slots_keep_their_order_through_reloads(tmp_path: Path) -> None:
    order: list[int] = []

    async def function(number: int) -> None:
        order.append(number)
        await asyncio.sleep(0)

    def policy(most: int) -> Policy:
        return Policy.model_validate({"bulkhead": {"max_concurrent": most, "max_wait": None}})

    async def main() -> None:
        bound: Any = policy(1).apply(function)
        share_limits(bound.binding.resolved().executors, "function", tmp_path)
        async with asyncio.timeout(WAIT):
            bulkhead = executor_of(bound, "bulkhead")
            assert bulkhead.take()
            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(bound(number)))
                await asyncio.sleep(0)
                bound.binding.swap(policy(1 + number % 2))
                assert bulkhead.home.successor is executor_of(bound, "bulkhead").home.successor
            bulkhead.leave()
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == list(range(6))
