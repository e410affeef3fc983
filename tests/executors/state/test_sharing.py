"""Limits whose state is in files that processes share."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import BulkheadFullError, CircuitOpenError, ConfigError, Policy, RateLimitPolicy
from opero.executors.state.budget import LocalBudget, LockedBudget
from opero.executors.state.sharing import SharedLimits, share_limits
from opero.runtime.clock import SYSTEM
from opero.runtime.state_file import StateFile
from opero.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opero.executors.state.circuit import Circuit

WAIT = 30
"""Seconds after which a test has hung."""


def work(value: Any = None) -> Any:
    return value() if callable(value) else value


def executor_of(bound: Any, kind: str) -> Any:
    executor = bound.binding.resolved().executors[kind]
    return getattr(executor, "limiter", executor)


def share(bound: Any, folder: Path) -> SharedLimits:
    limits = share_limits(bound.binding.resolved().executors, "work", folder)
    assert limits is not None
    return limits


def pair(folder: Path, **policies: Any) -> tuple[Any, Any]:
    """A function, and the same one as a worker process binds it."""
    policy = Policy.model_validate(policies)
    bound = policy.apply(work)
    limits = share(bound, folder)
    return bound, bind_in_worker(policy, limits)


def bind_in_worker(policy: Policy, limits: SharedLimits) -> Any:
    from opero.bound import bind

    return bind(policy, work, provider=limits)


def run(code: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment)


@contextmanager
def child(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = run(code, *args)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT)


def calls(circuit: Circuit) -> int:
    """How many calls the window holds."""
    return circuit.window.counts(0.0).calls


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# The file


def test_a_state_that_is_written_is_read_elsewhere(tmp_path: Path) -> None:
    file = StateFile.create(tmp_path / "state", 100)
    other = StateFile(str(tmp_path / "state"))
    with file:
        assert file.read() is None
        file.write(["some", "state"])
        file.number = 2.5
        file.flag = True
    with other:
        assert other.read() == ["some", "state"]
        assert (other.number, other.flag) == (2.5, True)


def test_a_state_too_large_for_the_file_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    file = StateFile.create(tmp_path / "state", 100)
    with file:
        file.write("old")
        with pytest.raises(ValueError, match="does not fit"):
            file.write("x" * 200)
        assert file.read() == "old"


def test_the_error_for_a_missing_file_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="one machine only; leave them out, or use mode='thread'"):
        StateFile("/nowhere/state")


HOLDER = """
    import sys, time
    from opero.runtime.state_file import StateFile
    file = StateFile(sys.argv[1])
    with file:
        file.write("half")
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_process_killed_while_it_holds_the_lock_frees_it(tmp_path: Path) -> None:
    file = StateFile.create(tmp_path / "state", 100)
    with child(HOLDER, file.path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        with file:
            assert file.read() == "half"


WRITER = """
    import sys
    from opero.runtime.state_file import StateFile
    file = StateFile(sys.argv[1])
    print("begun", flush=True)
    number = 0
    while True:
        number += 1
        with file:
            file.write([number] * (number % 500))
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_state(tmp_path: Path) -> None:
    file = StateFile.create(tmp_path / "state", 4000)
    choice = random.Random(1)
    for _ in range(4):
        with child(WRITER, file.path) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begun\n"
            time.sleep(choice.random() * 0.02)  # any moment will do
            writer.send_signal(signal.SIGKILL)
            with file:
                state = file.read()
        assert not state or (len(set(state)) == 1 and state[0] % 500 == len(state))


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=8), st.data())
def test_a_write_that_is_cut_off_changes_nothing(states: list[bytes], data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        file = StateFile.create(path, 100)
        with file:
            for state in states:
                file.write(state)
                before = path.read_bytes()
                file.write(b"next")
                after = path.read_bytes()
                changed = [each for each in range(len(before)) if before[each] != after[each]]
                # All bytes but the one that says which slot counts are written first, in whatever order.
                cut = data.draw(st.lists(st.sampled_from(changed), unique=True)) if changed else []
                torn = bytearray(before)
                for each in cut:
                    torn[each] = after[each] if each else before[each]
                path.write_bytes(bytes(torn))
                assert file.read() == state
                path.write_bytes(after)
                assert file.read() == b"next"


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


def test_files_and_descriptors_go_with_their_executors(tmp_path: Path) -> None:
    policies = {"rate_limit": 1000.0, "circuit_breaker": {"failure_rate": 0.5}, "bulkhead": 3}
    before = descriptors()
    for _ in range(6):
        bound, worker = pair(tmp_path, **policies)
        bound(1), worker(1)
        assert list(tmp_path.iterdir()) != []
        del bound, worker
        gc.collect()
    assert descriptors() <= before + 2
    assert list(tmp_path.iterdir()) == []


def test_an_executor_is_shared_once_however_often_it_is_mapped(tmp_path: Path) -> None:
    bound = Policy.model_validate({"rate_limit": 10.0, "circuit_breaker": 5, "bulkhead": 2}).apply(work)
    first, second = share(bound, tmp_path), share(bound, tmp_path)
    assert first.paths == second.paths
    assert len(first.paths) == 3


def test_a_function_without_limits_shares_nothing(tmp_path: Path) -> None:
    bound = Policy.model_validate({"retry": 3}).apply(work)
    assert share_limits(bound.binding.resolved().executors, "work", tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_clock_of_its_own_cannot_be_shared(tmp_path: Path) -> None:
    bound = Policy.model_validate({"rate_limit": 10.0}).apply(work, clock=VirtualClock())
    with pytest.raises(ConfigError, match="work: its rate_limit runs on a clock of its own"):
        share(bound, tmp_path)


def test_a_function_that_is_never_mapped_in_processes_has_local_homes() -> None:
    bound = Policy.model_validate({"rate_limit": 10.0, "circuit_breaker": 5, "bulkhead": 2}).apply(work)
    bound()
    kinds = {type(executor_of(bound, kind)).__name__ for kind in ("rate_limit", "circuit_breaker", "bulkhead")}
    assert kinds == {"RateLimitExecutor", "CircuitBreakerExecutor", "BulkheadExecutor"}
    assert type(executor_of(bound, "rate_limit").home) in (LocalBudget, LockedBudget)


def test_a_timeout_of_the_function_around_leaves_no_lock_taken(tmp_path: Path) -> None:
    file = StateFile.create(tmp_path / "state", 100)

    def spin() -> None:
        while True:
            with file:
                file.write("x")

    bound = Policy.model_validate({"timeout": {"attempt": 0.02}}).apply(spin)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            bound()
        assert not file._lock._is_owned()
        with StateFile(file.path):
            pass


# Rate limit


@given(
    st.floats(0.1, 100),
    st.integers(1, 5),
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 3), st.sampled_from([float("inf"), 0.0, 0.5, -1.0]), st.booleans()),
        max_size=30,
    ),
)
def test_the_shared_budget_answers_as_the_local_one(rate: float, burst: int, steps: list[Any]) -> None:
    import tempfile

    now = 100.0
    with tempfile.TemporaryDirectory() as folder:
        policies = {"rate_limit": {"rate": rate, "burst": burst}}
        budgets = [executor_of(each, "rate_limit").home for each in pair(Path(folder), **policies)]
        local = LocalBudget(RateLimitPolicy(rate=rate, burst=burst), SYSTEM.monotonic)
        for number, (passed, cost, patience, refunds) in enumerate(steps):
            now += passed
            one = budgets[number % 2]
            booked = local.book(now, cost, patience)
            assert one.book(now, cost, patience) == booked
            if refunds:
                local.refund(booked[1])
                budgets[(number + 1) % 2].refund(booked[1])
            assert one.book(now, 1.0, -1.0) == local.book(now, 1.0, -1.0)
            assert not one.take()


def test_permits_that_were_taken_before_are_gone_when_the_budget_is_shared(tmp_path: Path) -> None:
    policy = Policy.model_validate({"rate_limit": {"rate": 0.01, "burst": 3, "max_wait": 0}})
    bound = policy.apply(work)
    bound(), bound()
    other = bind_in_worker(policy, share(bound, tmp_path))
    other()
    for each in (bound, other):
        with pytest.raises(Exception, match="the next permit of 0.01/s"):
            each()


@pytest.mark.parametrize("_", range(10))
def test_permits_of_threads_are_all_counted_while_the_budget_moves_to_a_file(_: int, tmp_path: Path) -> None:
    bound = Policy.model_validate({"rate_limit": {"rate": 0.001, "burst": 500, "max_wait": 0}}).apply(work)
    taken: list[int] = []
    barrier = threading.Barrier(5)

    def use() -> None:
        barrier.wait(WAIT)
        for _ in range(300):
            try:
                bound()
                taken.append(1)
            except Exception:  # there is no permit left
                pass

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait(WAIT)
    share(bound, tmp_path)
    for thread in threads:
        thread.join(WAIT)
    assert len(taken) == 500


# Circuit breaker


def fails() -> None:
    raise ConnectionError("down")


def failing(bound: Any, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            bound(fails)


def test_failures_anywhere_open_the_circuit_everywhere(tmp_path: Path) -> None:
    here, there = pair(tmp_path, circuit_breaker=3)
    failing(there, 2)
    failing(here)
    for each in (here, there):
        assert executor_of(each, "circuit_breaker").state == "open"
        with pytest.raises(CircuitOpenError, match="work: the circuit is open for another .* ConnectionError: down"):
            each()


def test_a_success_anywhere_forgets_the_failures_before_it(tmp_path: Path) -> None:
    here, there = pair(tmp_path, circuit_breaker=3)
    failing(here, 2)
    there()
    failing(here, 2)
    assert executor_of(there, "circuit_breaker").state == "closed"
    failing(there)
    assert executor_of(here, "circuit_breaker").state == "open"


def test_what_was_counted_before_counts_when_it_is_shared(tmp_path: Path) -> None:
    policy = Policy.model_validate({"circuit_breaker": 2})
    bound = policy.apply(work)
    failing(bound)
    other = bind_in_worker(policy, share(bound, tmp_path))
    failing(other)
    assert executor_of(bound, "circuit_breaker").state == "open"


def test_probes_are_counted_over_all_processes_and_their_success_closes_the_circuit_for_all(tmp_path: Path) -> None:
    here, there = pair(tmp_path, circuit_breaker={"consecutive_failures": 1, "open_for": 0.05, "half_open_calls": 2})
    failing(here)
    until(lambda: executor_of(there, "circuit_breaker").state == "half_open")
    refused = []

    def probe() -> None:
        def second() -> None:
            for each in (here, there):
                try:
                    each()
                except CircuitOpenError as error:
                    refused.append(str(error))

        here(second)

    there(probe)
    assert len(refused) == 2
    assert all("probes are under way" in each for each in refused)
    assert executor_of(here, "circuit_breaker").state == "closed"
    assert executor_of(there, "circuit_breaker").state == "closed"
    here(), there()


def test_a_circuit_that_an_operator_forces_is_forced_everywhere(tmp_path: Path) -> None:
    here, there = pair(tmp_path, circuit_breaker=1)
    executor_of(here, "circuit_breaker").force_open()
    with pytest.raises(CircuitOpenError, match="forced open"):
        there()
    executor_of(there, "circuit_breaker").force_closed()
    failing(here, 3)
    assert executor_of(here, "circuit_breaker").state == "forced_closed"
    executor_of(here, "circuit_breaker").reset()
    failing(there)
    assert executor_of(here, "circuit_breaker").state == "open"


@pytest.mark.parametrize("window", [10, 100_000, "30s", "0.5s"])
def test_windows_of_calls_and_of_time_are_shared(tmp_path: Path, window: Any) -> None:
    policy = {"failure_rate": 0.5, "window": window, "min_calls": 6}
    here, there = pair(tmp_path, circuit_breaker=policy)
    here(), there(), there()
    failing(there)
    failing(here)
    assert executor_of(there, "circuit_breaker").state == "closed"
    failing(there)
    assert executor_of(here, "circuit_breaker").state == "open"


def test_a_full_window_of_any_size_fits_its_file(tmp_path: Path) -> None:
    here, there = pair(tmp_path, circuit_breaker={"failure_rate": 1.0, "window": 20_000})
    breaker = executor_of(here, "circuit_breaker")

    def fill(circuit: Circuit) -> None:
        for number in range(25_000):
            circuit.window.add(0.0, bool(number % 2), bool(number % 3))

    breaker.change(fill)
    there()
    assert breaker.change(calls) == 20_000


def test_a_failure_of_any_size_and_kind_fits(tmp_path: Path) -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise ZeroDivisionError

    here, there = pair(tmp_path, circuit_breaker=10)

    def fail_with(error: Exception) -> Any:
        def fail() -> None:
            raise error

        return fail

    Endless = type("E" * 20_000, (Exception,), {})  # noqa: N806
    for error in (
        ValueError("x" * 1_000_000),
        ValueError(threading.Lock()),
        Mute(),
        Endless(),
        ValueError("\ud800" * 300),
    ):
        with pytest.raises(type(error)):
            here(fail_with(error))
    there()


def test_a_breaker_gives_right_answers_while_its_state_moves_to_a_file(tmp_path: Path) -> None:
    bound = Policy.model_validate({"circuit_breaker": {"consecutive_failures": 1, "open_for": 600}}).apply(work)
    breaker = executor_of(bound, "circuit_breaker")
    breaker.force_closed()
    wrong: list[Any] = []
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            try:
                bound()
                if breaker.state != "forced_closed":
                    wrong.append(breaker.state)
            except Exception as error:  # that is what is looked for
                wrong.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    share(bound, tmp_path)
    stop.set()
    for thread in threads:
        thread.join(WAIT)
    assert wrong == []


# Bulkhead


def test_slots_are_those_of_all_processes(tmp_path: Path) -> None:
    here, there = pair(tmp_path, bulkhead=2)

    def inner() -> Any:
        with pytest.raises(BulkheadFullError, match="work: bulkhead full: 2 of 2 slots in use"):
            here()
        return executor_of(there, "bulkhead").running

    assert here(lambda: there(inner)) == 2
    assert executor_of(here, "bulkhead").running == 0


KEEPER = """
    import pickle, sys, time
    from opero import Policy
    from opero.bound import bind
    from opero.executors.state.sharing import SharedLimits

    def work(value):
        print("has a slot", flush=True)
        sys.stdin.readline()

    limits = SharedLimits({"bulkhead": sys.argv[1]}, {"bulkhead": "work"})
    bound = bind(Policy.model_validate({"bulkhead": {"max_concurrent": 1, "max_wait": None}}), work, provider=limits)
    print("ready", flush=True)
    sys.stdin.readline()
    bound(1)
    print("left", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """A function with one slot, and another process that shares it."""
    bound = Policy.model_validate({"bulkhead": {"max_concurrent": 1, "max_wait": None}}).apply(work)
    limits = share(bound, tmp_path)
    with child(KEEPER, limits.paths["bulkhead"]) as process:
        tell(process, None, "ready")
        yield bound, process


def tell(process: subprocess.Popen[str], line: str | None, answer: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if line is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    assert process.stdout.readline() == answer + "\n"


def test_the_slots_of_a_killed_process_are_free_again(keeper: tuple[Any, subprocess.Popen[str]]) -> None:
    bound, process = keeper
    tell(process, "go", "has a slot")
    assert executor_of(bound, "bulkhead").running == 1
    process.send_signal(signal.SIGKILL)  # and is not waited for: a dead process that is still listed holds nothing
    assert bound("mine") == "mine"
    assert executor_of(bound, "bulkhead").running == 0


def waiting(bulkhead: Any) -> int:
    return len(bulkhead.home.queue)


def test_waiting_calls_get_slots_in_their_order_over_all_processes(
    keeper: tuple[Any, subprocess.Popen[str]],
) -> None:
    bound, process = keeper
    bulkhead = executor_of(bound, "bulkhead")
    order: list[Any] = []
    has_slot, go = threading.Event(), threading.Event()

    def hold() -> None:
        has_slot.set()
        go.wait(WAIT)

    def first() -> None:
        order.append("first")

    threads = [threading.Thread(target=bound, args=(each,)) for each in (hold, first)]
    threads[0].start()
    assert has_slot.wait(WAIT)
    threads[1].start()
    until(lambda: waiting(bulkhead) == 1)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()

    def others() -> int:
        with bulkhead.home.file:
            return len(bulkhead.home.file.read()[1])

    until(lambda: others() == 2)
    last = threading.Thread(target=bound, args=(lambda: order.append("last"),))
    last.start()
    until(lambda: waiting(bulkhead) == 2)
    go.set()
    threads[1].join(WAIT)
    tell(process, None, "has a slot")
    assert order == ["first"]
    assert waiting(bulkhead) == 1
    tell(process, "go", "left")
    last.join(WAIT)
    threads[0].join(WAIT)
    assert order == ["first", "last"]


def test_a_waiting_call_that_gives_up_or_is_cancelled_leaves_the_shared_queue(tmp_path: Path) -> None:
    import asyncio

    async def work_async(value: Any) -> Any:
        return await value if value is not None else None

    policy = Policy.model_validate({"bulkhead": {"max_concurrent": 1, "max_wait": 0.05}})
    bound = policy.apply(work_async)
    share(bound, tmp_path)
    bulkhead = executor_of(bound, "bulkhead")

    async def main() -> None:
        held = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(bound(held))
        await asyncio.sleep(0)
        with pytest.raises(BulkheadFullError, match="in the queue"):
            await bound(None)
        cancelled = asyncio.create_task(bound(None))
        while not waiting(bulkhead):
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert waiting(bulkhead) == 0
        with bulkhead.home.file:
            assert bulkhead.home.file.read()[1] == {}
        held.set_result(3)
        assert await first == 3
        await bound(None)

    asyncio.run(main())


def test_thousands_of_calls_can_wait(tmp_path: Path) -> None:
    import asyncio

    async def work_async(_: int) -> None:
        await asyncio.sleep(0)

    bound = Policy.model_validate({"bulkhead": {"max_concurrent": 50, "max_wait": None}}).apply(work_async)
    share(bound, tmp_path)

    async def main() -> None:
        async with asyncio.timeout(WAIT):
            await asyncio.gather(*(bound(number) for number in range(5000)))

    asyncio.run(main())
    assert executor_of(bound, "bulkhead").running == 0
    assert waiting(executor_of(bound, "bulkhead")) == 0


def test_a_call_that_waited_before_the_slots_were_shared_gets_one(tmp_path: Path) -> None:
    policy = Policy.model_validate({"bulkhead": {"max_concurrent": 1, "max_wait": None}})
    bound = policy.apply(work)
    bulkhead = executor_of(bound, "bulkhead")
    has_slot, go = threading.Event(), threading.Event()
    done: list[str] = []

    def hold() -> None:
        has_slot.set()
        go.wait(WAIT)

    threads = [
        threading.Thread(target=bound, args=(hold,)),
        threading.Thread(target=bound, args=(lambda: done.append("old"),)),
    ]
    threads[0].start()
    assert has_slot.wait(WAIT)
    threads[1].start()
    until(lambda: waiting(bulkhead) == 1)
    other = bind_in_worker(policy, share(bound, tmp_path))
    assert bulkhead.running == 1
    third = threading.Thread(target=other, args=(lambda: done.append("new"),))
    third.start()
    go.set()
    for thread in (*threads, third):
        thread.join(WAIT)
    assert sorted(done) == ["new", "old"]
    assert bulkhead.running == 0


@pytest.mark.parametrize("_", range(20))
def test_under_threads_the_limit_holds_while_the_slots_move_to_a_file(_: int, tmp_path: Path) -> None:
    bound = Policy.model_validate({"bulkhead": {"max_concurrent": 2, "max_wait": None}}).apply(work)
    inside, most, lock = [0], [0], threading.Lock()

    def enter() -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0)
        with lock:
            inside[0] -= 1

    threads = [threading.Thread(target=lambda: [bound(enter) for _ in range(40)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    share(bound, tmp_path)
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert most[0] <= 2
    assert executor_of(bound, "bulkhead").running == 0


# Threads and processes together

HAMMER = """
    import sys, threading, time
    from opero import Policy
    from opero.bound import bind
    from opero.executors.state.sharing import SharedLimits

    paths = dict(zip(["rate_limit", "circuit_breaker", "bulkhead"], sys.argv[1:4]))
    limits = SharedLimits(paths, {kind: "work" for kind in paths})
    done = []

    def work(_):
        done.append(time.monotonic())

    policy = {"rate_limit": {"rate": 400.0, "max_wait": None}, "circuit_breaker": {"failure_rate": 0.5},
              "bulkhead": {"max_concurrent": 2, "max_wait": None}}
    bound = bind(Policy.model_validate(policy), work, provider=limits)
    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=lambda: [bound(1) for _ in range(20)]) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(*done, flush=True)
"""


def test_threads_and_processes_keep_all_limits_together(tmp_path: Path) -> None:
    moments: list[float] = []
    policy = {
        "rate_limit": {"rate": 400.0, "max_wait": None},
        "circuit_breaker": {"failure_rate": 0.5, "window": 100},
        "bulkhead": {"max_concurrent": 2, "max_wait": None},
    }
    bound = Policy.model_validate(policy).apply(work)
    paths = share(bound, tmp_path).paths
    names = [paths[kind] for kind in ("rate_limit", "circuit_breaker", "bulkhead")]
    with child(HAMMER, *names) as one, child(HAMMER, *names) as two:
        for each in (one, two):
            tell(each, None, "ready")
        began = time.monotonic()
        for each in (one, two):
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()

        def use() -> None:
            for _ in range(20):
                bound(lambda: moments.append(time.monotonic()))

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        for each in (one, two):
            assert each.stdout is not None
            moments += [float(moment) for moment in each.stdout.readline().split()]
    assert len(moments) == 180
    moments.sort()
    for number, each in enumerate(moments):
        assert each >= began + number / 400 - 0.001  # some are late, and none is too early
    breaker = executor_of(bound, "circuit_breaker")
    assert breaker.change(calls) == 100
    assert executor_of(bound, "bulkhead").running == 0


# A forked child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_shares_the_limits_and_is_not_blocked_by_locks_of_its_parent(tmp_path: Path) -> None:
    policies = {"rate_limit": {"rate": 1000.0, "burst": 50}, "circuit_breaker": 3, "bulkhead": 2}
    bound, _ = pair(tmp_path, **policies)
    bulkhead = executor_of(bound, "bulkhead")
    circuit = executor_of(bound, "circuit_breaker").home
    with bulkhead.home.file, circuit.file:  # held by a thread that the child will not have
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            # The child may wait for its parent's locks, and must be able to have them afterwards.
            code = 1
            try:
                os.read(read, 1)
                for _ in range(5):
                    bound(1)
                failing(bound, 2)
                gc.collect()
                code = 0
            finally:
                os._exit(code)
        os.close(read)
    os.write(write, b"x")
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    assert sorted(each.name.split("-")[0] for each in tmp_path.iterdir()) == [
        "bulkhead",
        "circuit_breaker",
        "rate_limit",
    ]
    assert bound(2) == 2
    failing(bound, 3)
    assert executor_of(bound, "circuit_breaker").state == "open"
    assert bulkhead.running == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_that_drops_its_copies_leaves_the_files_to_its_parent(tmp_path: Path) -> None:
    bound, other = pair(tmp_path, bulkhead=2)
    pid = os.fork()
    if pid == 0:
        del bound, other
        gc.collect()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(list(tmp_path.iterdir())) == 1
    assert other(lambda: bound(2)) == 2


def test_messages_name_the_profile_in_workers_too(tmp_path: Path) -> None:
    from opero import Registry

    registry = Registry({"api": Policy.model_validate({"circuit_breaker": 1})})
    bound = registry.bind(work, "api")
    other = bind_in_worker(bound.policy, share(bound, tmp_path))
    failing(other)
    with pytest.raises(CircuitOpenError, match="api: the circuit is open"):
        other()
