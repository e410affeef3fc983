"""A forked child has only one thread: what other threads of its parent had in hand is free, forgotten, or made anew."""

from __future__ import annotations

import _imp
import asyncio
import contextlib
import gc
import importlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from opero import AdaptiveTTL, BulkheadFullError, CircuitOpenError, Policy, Registry
from opero.cache import lru
from opero.cache.database import Database
from opero.cache.outage import StoreBreaker
from opero.executors.state.sharing import share_limits
from opero.parallel.workers import process as processes
from opero.runtime import forking, helper_threads
from opero.runtime.clock import SYSTEM, Clock
from opero.runtime.forking import RenewedLock, renew_in_child
from opero.runtime.helper_threads import abandoned
from opero.runtime.hosts import MAX_IN_BACKGROUND
from opero.testing import VirtualClock

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # Python 3.12 warns of forks beside threads
]

WAIT = 30.0
"""Seconds for what takes no time, unless it hangs."""


def until(is_true: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not is_true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.001)


def fork(work: Callable[[], object], *, seconds: int = int(WAIT)) -> int:
    """Run a function in a forked child, which exits with 0 if it returns, and is killed if it takes too long."""
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        work()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def in_child(work: Callable[[], object]) -> None:
    """Check in a forked child that a function returns."""
    assert os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == 0


def in_thread(work: Callable[[], object]) -> Any:
    """The result of a function in a thread, where timeouts have no alarm."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(WAIT)


def run_program(source: str) -> None:
    """Check that a program ends well and prints nothing."""
    options = ["-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning"]  # as above
    command = [sys.executable, *options, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def held_in_thread(lock: Any) -> Iterator[None]:
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert end.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(WAIT)
    try:
        yield
    finally:
        end.set()
        thread.join(WAIT)


class Held:
    """A function that does not return until it is let go. Its calls in a forked child return at once."""

    def __init__(self) -> None:
        self.begun = queue.SimpleQueue[object]()
        self.calls = 0
        self._end = threading.Event()
        self._home = os.getpid()

    def __call__(self, number: int = 0) -> int:
        self.calls += 1
        if os.getpid() == self._home:
            self.begun.put(number)
            assert self._end.wait(WAIT)
        return number

    async def called(self, number: int = 0) -> int:
        self.calls += 1
        if os.getpid() == self._home:
            self.begun.put(number)
            while not self._end.is_set():
                await asyncio.sleep(0.001)
        return number

    @contextmanager
    def running(self, *calls: Callable[[], object]) -> Iterator[None]:
        """Threads in which calls are under way."""
        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(call) for call in calls]
            try:
                for _ in calls:
                    self.begun.get(timeout=WAIT)
                yield
            finally:
                self._end.set()
        for each in futures:
            each.result()


def executor_of(bound: Any, kind: str) -> Any:
    return bound.binding.resolved().executors[kind]


# The rule


def test_locks_that_threads_of_the_parent_hold_are_free() -> None:
    lock = RenewedLock()

    def use() -> None:
        assert lock.acquire(blocking=False)

    with held_in_thread(lock):
        in_child(use)


def test_a_lock_of_the_forking_thread_stays_its_own() -> None:
    lock = RenewedLock()

    def use() -> None:
        assert not in_thread(lambda: lock.acquire(blocking=False))
        lock.release()
        assert in_thread(lambda: lock.acquire(blocking=False))

    with lock:
        in_child(use)


def test_a_child_finds_no_change_half_done() -> None:
    class Pair:
        def __init__(self) -> None:
            self.lock = threading.RLock()
            self.one = self.other = 0
            renew_in_child(self, "lock")

        def change(self) -> None:
            while not stop.is_set():
                with self.lock:
                    self.one += 1
                    for _ in range(200):
                        pass
                    self.other += 1
                time.sleep(0.0001)  # or the two threads might leave the lock to nobody else for PATIENCE

        def check(self) -> None:
            with self.lock:
                assert self.one == self.other

    pair, stop = Pair(), threading.Event()
    threads = [threading.Thread(target=pair.change) for _ in range(2)]
    for each in threads:
        each.start()
    try:
        for _ in range(20):
            in_child(pair.check)
    finally:
        stop.set()
        for each in threads:
            each.join(WAIT)


def test_other_fork_hooks_may_use_opero_while_its_locks_are_taken() -> None:
    code = """
import os, sys
os.register_at_fork(before=lambda: use(), after_in_parent=lambda: use(), after_in_child=lambda: use())
from opero import Policy

policy = Policy(
    bulkhead=1, rate_limit=1e6, cache={"ttl": 60, "max_size": 2}, circuit_breaker=2, timeout={"attempt": 5}
)
numbers = iter(range(100))
bound = policy.apply(lambda number: number)
used = []

def use():
    number = next(numbers)
    assert bound(number) == number
    used.append(number)

child = os.fork()
assert len(used) == 2
if not child:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    run_program(code)


def test_one_renewal_that_fails_does_not_prevent_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    class Fails:
        def after_fork(self) -> None:
            raise ValueError("cannot be renewed")

    class Renewed:
        is_renewed = False

        def after_fork(self) -> None:
            self.is_renewed = True

    objects = [Renewed(), Fails(), Renewed()]
    for each in objects:
        renew_in_child(each)

    def check() -> None:
        assert [getattr(each, "is_renewed", None) for each in objects] == [True, None, True]
        [report] = reported
        assert str(report.exc_value) == "cannot be renewed"

    in_child(check)


def test_the_generation_counts_forks() -> None:
    before = forking.generation

    def check(forks: int) -> None:
        assert forking.generation == before + forks

    in_child(lambda: (check(1), in_child(lambda: check(2)), check(1)))
    check(0)


def everything(folder: Path) -> Callable[[], None]:
    """A function that uses all policies, in threads and event loops, on the calls of this process."""
    numbers = iter(range(10**6))
    registry = Registry({"api": Policy.model_validate({"retry": 1, "rate_limit": 1e6, "circuit_breaker": 5})})
    shared: Any = registry.bind(str, "api")
    limits = {
        "retry": {"retries": 1, "min_delay": 0},
        "rate_limit": {"rate": 1e6, "burst": 100},
        "circuit_breaker": {"failure_rate": 0.9, "window": 100, "min_calls": 50},
        "bulkhead": 3,
        "timeout": {"attempt": 20},
    }
    failed: set[int] = set()

    def fails_once(number: int) -> int:
        if number not in failed:
            failed.add(number)
            raise ConnectionError
        return number

    async def fails_once_async(number: int) -> int:
        return fails_once(number)

    in_files: Any = Policy.model_validate(limits).apply(run)
    share_limits(in_files.binding.resolved().executors, "run", folder)
    in_memory = {"ttl": AdaptiveTTL(), "stale_ttl": 9, "tags": ["t"], "max_size": 3}
    disk = {"backend": "disk", "cache_dir": folder, "ttl": 60.0}
    bound: list[Any] = [
        Policy.model_validate({**limits, "cache": cache}).apply(fails_once) for cache in (in_memory, disk)
    ]
    bound_async: list[Any] = [
        Policy.model_validate({**limits, "cache": cache}).apply(fails_once_async) for cache in (in_memory, disk)
    ]

    def use() -> None:
        assert shared(1) == "1"
        number = next(numbers)
        for each in bound:
            failed.discard(number)
            assert each(number) == each(number) == number
            assert in_thread(lambda each=each: each(number + 10**6)) == number + 10**6
        for each in bound_async:
            failed.discard(number)
            assert asyncio.run(each(number)) == number
        assert in_files() is None
        bound[0].cache_clear(tags="t")
        assert bound[0].map([number + 1], progress=False) == [number + 1]

    return use


def registered_locks() -> list[tuple[Any, str]]:
    found = [(reference(), name) for reference, name in forking._renewed.copy().items() if name]
    return [(owner, name) for owner, name in found if owner is not None]


def test_a_child_can_be_forked_inside_each_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "PATIENCE", 0.001)
    gc.collect()
    others = {id(owner) for owner, _ in registered_locks()}
    use = everything(tmp_path)
    use()
    of_modules = helper_threads._helpers, lru._purge_thread
    waited_for = forking.undivided, Database.lock  # for as long as it takes
    locks = [
        (owner, name)
        for owner, name in registered_locks()
        if owner not in waited_for
        if id(owner) not in others or isinstance(owner, RenewedLock) or owner in of_modules
    ]
    assert {type(owner).__name__ for owner, _ in locks} >= {
        *("LocalCircuit", "LocalSlots", "Memory", "RenewedLock", "SharedSlots", "SingleFlight", "StateFile"),
        *("StoreBreaker", "Locks", "_Counts", "_Helpers", "_PurgeThread"),
    }
    for owner, name in locks:
        with held_in_thread(forking._lock_of(owner, name)):
            child = fork(use)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, owner
    use()


# Timeouts


def test_the_first_timeout_of_a_child_is_not_spurious() -> None:
    bound = Policy.model_validate({"timeout": {"attempt": 20}}).apply(lambda: "done")
    assert in_thread(bound) == "done"  # its helper thread is idle now

    def use() -> None:
        assert in_thread(bound) == "done"

    in_child(use)


def test_functions_that_the_parent_has_abandoned_do_not_count_in_a_child() -> None:
    held = Held()
    bound = Policy.model_validate({"timeout": {"attempt": 0.01}}).apply(held)

    def expire() -> None:
        with pytest.raises(TimeoutError):
            bound()

    def check() -> None:
        assert abandoned() == 0

    before = abandoned()
    with held.running(lambda: in_thread(expire)):
        until(lambda: abandoned() == before + 1)
        in_child(check)
    until(lambda: abandoned() == before)


@pytest.mark.parametrize("call", ["run_in_helper(WAIT, forks, 0)", "all(mapped.map([1, 2]))"])
def test_a_child_that_a_thread_of_a_pool_forks_ends_when_the_function_returns(call: str) -> None:
    # In a program of its own: the child exits as any program, and ray, for one, does not support that.
    run_program(f"""
import os, signal
from opero import Policy
from opero.runtime.helper_threads import run_in_helper

WAIT = {int(WAIT)}
children = []

def forks(_):
    child = os.fork()
    children.append(child)
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(WAIT)
    return child

policy = {{"parallel": {{"mode": "thread", "workers": 2, "progress": False}}}}
mapped = Policy.model_validate(policy).apply(forks)
assert {call}
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""")


# Caches


@pytest.mark.parametrize("is_async", [False, True])
def test_a_child_computes_what_a_thread_of_its_parent_computes(*, is_async: bool) -> None:
    held = Held()
    policy = Policy.model_validate({"cache": True})
    bound: Any = policy.apply(held.called if is_async else held)

    def call() -> None:
        assert (asyncio.run(bound(1)) if is_async else bound(1)) == 1

    def check() -> None:
        call()
        call()
        assert held.calls == 2  # one of them the parent's

    with held.running(call):
        in_child(check)
    call()
    assert held.calls == 1


def test_a_child_waits_for_the_result_of_its_parent_if_they_share_the_store(tmp_path: Path) -> None:
    held = Held()
    cache = {"backend": "disk", "ttl": None, "cache_dir": tmp_path, "key": lambda function: "key"}
    bound: Any = Policy.model_validate({"cache": cache}).apply(run)

    def check() -> None:
        assert bound(held) == 0
        assert held.calls == 1

    with held.running(lambda: bound(held)):
        child = fork(check)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_does_not_unlock_a_computation_that_has_forked(tmp_path: Path) -> None:
    children: list[int] = []
    home = os.getpid()

    def forks() -> int:
        if os.getpid() == home:
            children.append(os.fork())
        return os.getpid()

    bound: Any = Policy.model_validate({"cache": {"backend": "disk", "ttl": None, "cache_dir": tmp_path}}).apply(forks)
    try:
        result = bound()
        if os.getpid() != home:
            os._exit(0 if result == os.getpid() else 1)
    except BaseException:
        if os.getpid() != home:
            os._exit(2)
        raise
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


def test_a_lock_of_a_server_is_released_by_the_process_that_holds_it() -> None:
    from opero.cache.computation_lock import ComputationLock

    class Mutex:
        released = 0

        def acquire(self, wait: bool) -> bool:
            return True

        def release(self) -> None:
            self.released += 1

    mutex = Mutex()
    lock = ComputationLock(mutex, StoreBreaker("store", SYSTEM))
    assert lock.acquire()

    def check() -> None:
        lock.release()
        assert mutex.released == 0

    in_child(check)
    lock.release()
    assert mutex.released == 1


def test_a_child_reads_an_async_cache_on_disk(tmp_path: Path) -> None:
    async def double(number: int) -> int:
        return 2 * number

    bound: Any = Policy.model_validate({"cache": {"backend": "disk", "ttl": None, "cache_dir": tmp_path}}).apply(double)
    assert asyncio.run(bound(1)) == 2  # threads that read the disk are idle now

    def check() -> None:
        assert asyncio.run(bound(1)) == 2
        assert asyncio.run(bound(2)) == 4

    in_child(check)


def test_refreshes_of_the_parent_neither_block_those_of_a_child_nor_use_up_their_number() -> None:
    held = Held()
    clock = VirtualClock()
    held._end.set()
    policy = Policy.model_validate({"cache": {"ttl": 1, "stale_ttl": 100, "max_size": 100}})
    bound: Any = policy.apply(held, clock=clock)
    for number in range(MAX_IN_BACKGROUND):
        bound(number)
    held._end.clear()
    clock.advance(10)
    until(lambda: held.begun.empty() or held.begun.get())

    def check() -> None:
        before = held.calls
        assert bound(0) == 0
        until(lambda: held.calls == before + 1)

    for number in range(MAX_IN_BACKGROUND):
        bound(number)
    for _ in range(MAX_IN_BACKGROUND):
        held.begun.get(timeout=WAIT)
    try:
        in_child(check)
    finally:
        held._end.set()


def test_expired_results_are_freed_in_a_child_too() -> None:
    bound: Any = Policy.model_validate({"cache": {"ttl": 0.2}}).apply(lambda number: number)
    bound(1)
    backend = bound.binding.cache.store.backend

    def check() -> None:
        assert not lru._purge_thread.is_running
        late: Any = bound.binding.cache
        late.store.backend.put("other", 1, time.monotonic() + 1000)
        until(lambda: len(backend) == 1)

    in_child(check)


def test_a_child_may_probe_a_store_that_its_parent_is_probing() -> None:
    held, clock = Held(), VirtualClock()
    breaker = StoreBreaker("store", clock)

    def fails() -> None:
        raise OSError

    breaker(None, fails)
    clock.advance(1.5)

    def check() -> None:
        assert breaker("skipped", lambda: "probed") == "probed"

    with held.running(lambda: breaker(None, held)):
        assert breaker("skipped", lambda: "probed") == "skipped"
        in_child(check)


# Limits


def entered(bound: Any, most: int) -> int:
    """How many calls of a function enter its bulkhead at once."""
    begun: list[int] = []
    end = threading.Event()

    def call() -> None:
        with contextlib.suppress(BulkheadFullError):
            bound(lambda: (begun.append(1), end.wait(WAIT)))

    threads = [threading.Thread(target=call) for _ in range(most)]
    for each in threads:
        each.start()
    until(lambda: len(begun) + sum(not each.is_alive() for each in threads) == most)
    end.set()
    for each in threads:
        each.join(WAIT)
    return len(begun)


def run(function: Callable[[], object] | None = None) -> object:
    return function and function()


@pytest.mark.parametrize("is_shared", [False, True])
def test_slots_of_the_parents_threads_are_free_in_a_child(tmp_path: Path, *, is_shared: bool) -> None:
    held = Held()
    bound: Any = Policy.model_validate({"bulkhead": 4}).apply(run)
    if is_shared:
        share_limits(bound.binding.resolved().executors, "run", tmp_path)
    bulkhead = executor_of(bound, "bulkhead")

    def check() -> None:
        assert entered(bound, 6) == (2 if is_shared else 4)  # in a file those of the parent count as well
        assert bulkhead.running == (2 if is_shared else 0)

    with held.running(lambda: bound(held), lambda: bound(held)):
        in_child(check)
        assert bulkhead.running == 2
    assert bulkhead.running == 0
    assert entered(bound, 6) == 4


def test_calls_of_the_parent_that_wait_for_a_slot_do_not_wait_in_a_child() -> None:
    held = Held()
    bound: Any = Policy.model_validate({"bulkhead": {"max_concurrent": 1, "max_wait": 60}}).apply(run)
    bulkhead = executor_of(bound, "bulkhead")

    def check() -> None:
        assert not bulkhead.home.queue
        assert bound(lambda: 7) == 7

    with ThreadPoolExecutor(1) as pool, held.running(lambda: bound(held)):
        waiting = pool.submit(bound, lambda: 8)
        until(lambda: bulkhead.home.queue)
        in_child(check)
    assert waiting.result(WAIT) == 8


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async", "generator"])
def test_a_call_that_forks_gives_its_slot_back_once(tmp_path: Path, kind: str, *, is_shared: bool) -> None:
    limits = {"bulkhead": 2}
    bound: Any = Policy.model_validate(limits).apply(run)
    if is_shared:
        share_limits(bound.binding.resolved().executors, "run", tmp_path)
    bulkhead = executor_of(bound, "bulkhead")
    children: list[int] = []

    def forks() -> None:
        children.append(os.fork())

    async def forks_async() -> None:
        forks()

    def forks_in_generator() -> Iterator[int]:
        yield 1
        forks()

    code = 0
    if kind == "sync":
        bound(forks)
    else:
        functions: dict[str, Any] = {"async": forks_async, "generator": forks_in_generator}
        other: Any = Policy.model_validate(limits).apply(functions[kind])
        other.binding.resolved().executors["bulkhead"].join(bulkhead.home) if is_shared else None
        bulkhead = executor_of(other, "bulkhead")
        if kind == "async":
            with contextlib.suppress(RuntimeError):
                asyncio.run(other())
        else:
            assert list(other()) == [1]
    if children == [0]:
        try:
            code = 0 if bulkhead.running in ((0, 1) if is_shared else (0,)) else 3
            if kind == "sync":
                code = code or (0 if entered(bound, 4) <= 2 else 4)
            taken = [bulkhead.take() for _ in range(3)]
            code = code or (0 if taken in ([True, True, False], [True, False, False]) else 5)
        except BaseException:
            traceback.print_exc()
            code = 6
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert bulkhead.running == 0
    assert [bulkhead.take() for _ in range(3)] == [True, True, False]


def open_circuit(**policy: Any) -> tuple[Any, VirtualClock]:
    clock = VirtualClock()
    breaker = {"consecutive_failures": 1, "open_for": 10, **policy}
    bound: Any = Policy.model_validate({"circuit_breaker": breaker}).apply(run, clock=clock)
    with pytest.raises(ConnectionError):
        bound(failing)
    clock.advance(11)
    return bound, clock


def failing() -> None:
    raise ConnectionError


def test_a_child_may_probe_while_a_thread_of_its_parent_does() -> None:
    held = Held()
    bound, _ = open_circuit()
    breaker = executor_of(bound, "circuit_breaker")

    def check() -> None:
        assert breaker.state == "half_open"
        assert bound(lambda: 1) == 1
        assert breaker.state == "closed"

    with held.running(lambda: bound(held)):
        with pytest.raises(CircuitOpenError):
            bound()
        in_child(check)
        assert breaker.state == "half_open"
    assert breaker.state == "closed"


def test_a_probe_that_forks_counts_in_the_parent_only() -> None:
    bound, _ = open_circuit(half_open_calls=2)
    breaker = executor_of(bound, "circuit_breaker")
    children: list[int] = []
    bound(lambda: children.append(os.fork()))
    if children == [0]:
        code = 1
        try:
            # Both probes are left, and no third.
            code = 0 if [breaker.admit(breaker.clock.monotonic()) for _ in range(2)] else 2
            with contextlib.suppress(CircuitOpenError):
                breaker.admit(breaker.clock.monotonic())
                code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert breaker.state == "half_open"
    bound()
    assert breaker.state == "closed"


def test_permits_that_threads_of_the_parent_wait_for_are_not_lost_to_a_child() -> None:
    """The parent has taken one permit, and two threads wait for the next ones."""
    clock, end = Clock(), threading.Event()
    clock.monotonic = lambda: 1000.0
    clock.sleep = lambda _: end.wait(WAIT) and None
    bound: Any = Policy.model_validate({"rate_limit": {"rate": 2.0}}).apply(run, clock=clock)
    limiter = executor_of(bound, "rate_limit").limiter

    def check() -> None:
        assert limiter.wait_at(1000.0, 1.0) == 0.5
        assert limiter.wait_at(1000.5, 1.0) == 0

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(bound) for _ in range(3)]
        until(lambda: len(limiter._waiting) == 2)
        in_child(check)
        assert limiter.wait_at(1000.0, 1.0) == 1.5
        end.set()
    for each in calls:
        each.result()


def test_tasks_of_the_parent_that_wait_for_permits_do_not_wait_in_a_child() -> None:
    async def nothing() -> None:
        pass

    bound: Any = Policy.model_validate({"rate_limit": {"rate": 20.0, "max_wait": 1.0}}).apply(nothing)
    limiter = executor_of(bound, "rate_limit").limiter

    async def many() -> None:
        await asyncio.gather(*(bound() for _ in range(15)))

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(asyncio.run, many())
        until(lambda: limiter.queued >= 5)

        def check() -> None:
            assert limiter.queued == 0
            asyncio.run(bound())

        in_child(check)
        calls.result(WAIT)
    assert limiter.queued == 0


def test_permits_in_a_file_stay_those_of_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(SYSTEM, "sleep", lambda _: end.wait(WAIT))
    bound: Any = Policy.model_validate({"rate_limit": {"rate": 0.001}}).apply(run)
    share_limits(bound.binding.resolved().executors, "run", tmp_path)
    limiter = executor_of(bound, "rate_limit").limiter

    def check() -> None:
        assert limiter.wait_at(time.monotonic(), 1.0) > 2500

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(bound) for _ in range(3)]
        until(lambda: len(limiter._waiting) == 2)
        in_child(check)
        end.set()
    for each in calls:
        each.result()


# The rest


@pytest.mark.parametrize("clock", [SYSTEM, Clock()])
def test_a_child_draws_other_random_numbers_than_its_parent_and_its_siblings(clock: Clock) -> None:
    read, write = os.pipe()
    for _ in range(2):
        in_child(lambda: os.write(write, f"{clock.random.random()}\n".encode()))
    os.close(write)
    with os.fdopen(read) as drawn:
        assert len({clock.random.random(), *map(float, drawn)}) == 3


def test_a_watch_of_the_parent_is_stopped_in_a_child(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("policies: {api: {retry: 1}}")
    with Registry.load(tmp_path, environ={}).watch() as watch:
        in_child(watch.stop)
        assert all(each.is_alive() for each in watch._threads)


def square(number: int) -> int:
    time.sleep(0.002)
    return number * number


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_map_goes_on_in_the_parent_only(mode: str, tmp_path: Path) -> None:
    policy = {"parallel": {"mode": mode, "workers": 2, "progress": False, "window": 20}}
    bound: Any = Policy.model_validate(policy).apply(square)
    stream = bound.stream(range(100), journal=tmp_path / "journal")
    results = [next(stream) for _ in range(10)]

    def read_on() -> None:
        with pytest.raises(RuntimeError, match="a map does not continue in a forked child"):
            list(stream)

    def close() -> None:
        stream.close()

    def map_anew() -> None:
        assert bound.map(range(20)) == [each * each for each in range(20)]
        processes.end_all()

    for work in (read_on, close, map_anew):
        in_child(work)
        results += [next(stream) for _ in range(10)]
    results += stream
    assert results == [each * each for each in range(100)]
    assert len((tmp_path / "journal").read_text().splitlines()) == 101


def test_a_child_leaves_the_workers_of_its_parent_alone_when_it_exits() -> None:
    code = """
import os, sys
from opero import Policy

def pid(_):
    return os.getpid()

bound = Policy(parallel={"mode": "process", "workers": 1, "progress": False}).apply(pid)
stream = bound.stream(range(1000))
own = next(stream)
if not (child := os.fork()):
    sys.exit(0)  # with exit handlers and finalizers
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert set(stream) == {own}
"""
    run_program(code)


def test_a_fork_waits_for_the_import_of_another_thread(tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text("import time\nentered.set()\ntime.sleep(0.5)\nimport wave\n")
    code = f"""
import builtins, os, signal, sys, threading
from opero import opero
sys.path.insert(0, {str(tmp_path)!r})
builtins.entered = threading.Event()
opero(retries=1)(lambda: None)()
thread = threading.Thread(target=__import__, args=("slow_module",))
thread.start()
entered.wait()
if not (child := os.fork()):
    signal.alarm(20)
    import slow_module, wave, wsgiref
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
import sched
"""
    run_program(code)


def test_an_import_that_never_ends_does_not_keep_a_process_from_forking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "IMPORT_PATIENCE", 0.05)
    lock = importlib._bootstrap._get_module_lock("a_module")  # type: ignore[attr-defined]
    with held_in_thread(_Entered(lock)):
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not _imp.lock_held()


class _Entered:
    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_children_of_a_busy_process_neither_hang_nor_lose_anything() -> None:
    """`python -m tests.chaos.forks` forks 1,000."""
    command = [sys.executable, str(Path(__file__).with_name("busy_process.py")), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.stdout, done.stderr) == ("50 forks of a busy process: 0 hangs, 0 lost\n", "")
