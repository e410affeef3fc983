"""Hedging: another attempt beside one that takes long, of which the first result counts."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import opero
from opero import AllFailedError, CallTimeoutError, Policy, Registry
from opero.executors.state.circuit import enter
from opero.runtime import helper_threads
from opero.runtime.helper_threads import abandoned, take_helper
from opero.runtime.hosts import run_blocking
from opero.testing import VirtualClock, sleepers

EAGER = {"after": 0.2, "budget": 1}
SLOW, QUICK = 1.0, 0.1
pytestmark = pytest.mark.flaky(reruns=3)  # the virtual clock may move before a thread that has just begun sleeps on it


class Service:
    """A function whose executions take some seconds each, and then raise or return; the last step is repeated."""

    def __init__(self, kind: str, *steps: Any) -> None:
        self.kind = kind
        self.clock = VirtualClock()
        self.steps = steps
        self.begun = 0
        self.ended: list[int] = []
        self.running = self.most = 0

    def bind(self, **policy: Any) -> Any:
        self.bound: Any = Policy(**policy).apply(
            self.sync if self.kind == "sync" else self.asynchronous, clock=self.clock
        )
        return self.bound

    def call(self, *args: Any) -> Any:
        return self.bound(*args) if self.kind == "sync" else self.clock.run(self.bound(*args))

    def timed(self, *args: Any) -> tuple[Any, float]:
        started = self.clock.monotonic()
        try:
            found = self.call(*args)
        except Exception as error:
            found = error
        return found, round(self.clock.monotonic() - started, 6)

    @contextmanager
    def execution(self) -> Iterator[tuple[int, float, Any]]:
        number = self.begun
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        seconds, result = self.steps[min(number, len(self.steps) - 1)]
        try:
            yield number, seconds, result
            self.ended.append(number)
        finally:
            self.running -= 1

    def sync(self, *args: Any) -> Any:
        with self.execution() as (number, seconds, result):
            self.await_caller()
            self.clock.sleep(seconds)
        return self.result(number, result)

    def await_caller(self) -> None:
        """Let the caller reach its wait, if that has an end, before this thread moves the clock."""
        caller, until = threading.main_thread(), time.monotonic() + 0.1
        while threading.current_thread() is not caller and time.monotonic() < until:
            if caller.ident in self.clock._sleepers._due:
                break

    async def asynchronous(self, *args: Any) -> Any:
        with self.execution() as (number, seconds, result):
            await asyncio.sleep(seconds)
        return self.result(number, result)

    def result(self, number: int, result: Any) -> Any:
        if isinstance(result, BaseException):
            raise result
        return number if result is None else result

    @property
    def counts(self) -> tuple[int, int, int, int]:
        stats = self.bound.stats
        return stats.calls, stats.attempts, stats.hedges, stats.hedge_wins


@pytest.fixture(params=["sync", "async"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    monkeypatch.setattr(sleepers, "PATIENCE", 1500)  # on a busy machine, too, an attempt has begun before time moves
    for each in [take_helper() for _ in range(4)]:  # while a thread is being created, the clock does not see it
        each.release()
    made: list[Service] = []

    def make(*steps: Any) -> Service:
        made.append(Service(request.param, *steps))
        return made[-1]

    yield make
    for one in made:
        one.clock.advance(1000)  # attempts that were left behind end, and are not waited for by later tests
    eventually(lambda: not abandoned())


Services = Callable[..., Service]


def eventually(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


# The first result counts


def test_a_slow_attempt_is_hedged_and_the_first_result_counts(service: Services) -> None:
    one = service((QUICK, None), (SLOW, None), (QUICK, None))
    one.bind(hedge=EAGER)
    assert one.timed() == (0, QUICK)
    assert one.timed() == (2, pytest.approx(0.2 + QUICK))
    assert one.counts == (2, 3, 1, 1)


def test_a_hedge_is_an_event(service: Services, heard: list[Any]) -> None:
    hooked: list[Any] = []
    one = service((QUICK, None), (SLOW, None), (QUICK, None))
    one.bind(hedge=EAGER, hooks={"on_hedge": hooked.append})
    one.call()
    one.call()
    (event,) = [each for each in heard if each.name == "hedge_started"]
    assert (event.attempt, event.delay) == (2, 0.2)
    assert hooked == [event]


def test_the_first_attempt_may_still_be_the_first_to_answer(service: Services) -> None:
    one = service((QUICK, None), (0.5, None), (SLOW, None))
    one.bind(hedge=EAGER)
    one.call()
    assert one.timed() == (1, 0.5)
    assert one.counts == (2, 3, 1, 0)


def test_an_attempt_may_have_several_hedges(service: Services) -> None:
    one = service((QUICK, None), (SLOW, None), (SLOW, None), (QUICK, None))
    one.bind(hedge={"after": 0.2, "max": 2, "budget": 1})
    for _ in range(3):
        one.steps, one.begun = ((QUICK, None),), 0
        one.call()
    one.steps, one.begun = ((SLOW, None), (SLOW, None), (QUICK, None)), 0
    assert one.timed() == (2, pytest.approx(0.4 + QUICK))
    assert one.counts == (4, 6, 2, 1)


def test_an_async_loser_is_cancelled() -> None:
    one = Service("async", (QUICK, None), (SLOW, None), (QUICK, None))
    one.bind(hedge=EAGER)
    one.call()
    one.call()
    assert (one.running, one.ended) == (0, [0, 2])


def test_a_sync_loser_ends_in_its_thread_and_gives_back_its_slot_there() -> None:
    release, begun = threading.Event(), []

    def work() -> int:
        begun.append(None)
        if len(begun) == 2:
            assert release.wait(30)
        return len(begun)

    bound: Any = Policy(hedge={"after": 0.02, "budget": 1}, bulkhead=5).apply(work)
    before = abandoned()
    bound()
    assert bound() == 3
    bulkhead = bound.binding.pipeline.executors["bulkhead"]
    assert (bulkhead.running, abandoned() - before) == (1, 1)
    release.set()
    eventually(lambda: bulkhead.running == 0 and abandoned() == before)


# Failures


def test_an_attempt_that_fails_is_answered_by_the_other(service: Services) -> None:
    one = service((QUICK, None), (0.3, ConnectionError("first")), (0.5, None))
    one.bind(hedge=EAGER)
    one.call()
    assert one.timed() == (2, 0.7)
    assert (one.bound.stats.failures, one.bound.stats.errors) == (0, {"ConnectionError": 1})


def test_a_hedge_that_fails_leaves_the_first_to_answer(service: Services) -> None:
    one = service((QUICK, None), (SLOW, None), (QUICK, ConnectionError("second")))
    one.bind(hedge={"after": 0.2, "max": 3, "budget": 1})
    one.call()
    assert one.timed() == (1, SLOW)
    assert one.counts == (2, 3, 1, 0)


def test_if_all_fail_the_exception_is_that_of_the_first(service: Services) -> None:
    first = ConnectionError("first")
    one = service((QUICK, None), (0.5, first), (QUICK, ConnectionError("second")))
    one.bind(hedge=EAGER)
    one.call()
    assert one.timed() == (first, 0.5)
    assert (one.bound.stats.failures, one.bound.stats.errors) == (1, {"ConnectionError": 2})


def test_a_failure_before_its_time_is_left_to_retry_whose_attempts_are_hedged(service: Services) -> None:
    one = service((QUICK, None), (QUICK, ConnectionError()), (SLOW, None), (QUICK, None))
    one.bind(hedge=EAGER, retry={"min_delay": 0, "retries": 2})
    one.call()
    assert one.timed() == (3, pytest.approx(QUICK + 0.2 + QUICK))
    assert one.counts == (2, 4, 1, 1)
    assert (one.bound.stats.retries, one.bound.stats.recoveries) == (1, 1)


def test_attempts_that_time_out_are_hedged_and_retried(service: Services) -> None:
    one = service((QUICK, None), (9.0, None), (9.0, None), (9.0, None), (QUICK, None))
    one.bind(hedge=EAGER, retry={"min_delay": 0, "jitter": False}, timeout={"attempt": 2})
    for _ in range(2):
        one.begun = 0
        one.call()
    assert one.timed() == (4, pytest.approx(2.2 + 0.2 + QUICK))
    one.steps = ((9.0, None),)
    found, took = one.timed()
    assert type(found) is AllFailedError
    assert {type(each) for each in found.errors} == {CallTimeoutError}
    assert took <= 4 * 2.2 + 1e-6


def test_a_failed_response_is_a_failure_and_is_closed_if_another_answers(service: Services) -> None:
    class Response:
        def __init__(self, status: int) -> None:
            self.status_code, self.headers, self.closed = status, {}, 0

        def close(self) -> None:
            self.closed += 1

    failed, good = Response(503), Response(200)
    one = service((QUICK, None), (0.3, failed), (QUICK + 0.3, good))
    one.bind(hedge=EAGER)
    one.call()
    assert one.call() is good
    assert (failed.closed, good.closed) == (1, 0)


# What a hedge asks


def test_no_hedge_begins_unless_the_budget_allows_it(service: Services) -> None:
    one = service((SLOW, None))
    one.bind(hedge={"after": 0.2, "budget": "10%"})
    for _ in range(25):
        one.call()
    assert one.counts == (25, 27, 2, 0)


@pytest.mark.parametrize("state", ["half_open", "forced_open", "forced_closed"])
def test_no_hedge_begins_while_the_circuit_is_not_closed(service: Services, state: str) -> None:
    one = service((QUICK, None), (SLOW, None))
    bound = one.bind(hedge=EAGER, circuit_breaker={"consecutive_failures": 1, "half_open_calls": 9, "open_for": 1})
    one.call()
    breaker = bound.binding.pipeline.executors["circuit_breaker"]
    if state == "half_open":
        one.steps = ((QUICK, ConnectionError()),)
        one.timed()
        one.clock.advance(5)
        one.steps = ((SLOW, None),)
        assert breaker.state == "half_open"
        assert one.timed()[1] == SLOW
    elif state == "forced_closed":
        breaker.force_closed()
        assert one.timed()[1] == SLOW
    else:
        one.clock.advance(0)
        breaker.force_open()
        one.timed()
    assert one.bound.stats.hedges == 0


def test_the_circuit_counts_attempts_that_end_and_not_those_that_are_cancelled(service: Services) -> None:
    one = service((QUICK, None), (SLOW, None), (QUICK, ConnectionError()), (SLOW, None), (QUICK, ConnectionError()))
    bound = one.bind(hedge=EAGER, circuit_breaker={"consecutive_failures": 2})
    breaker = bound.binding.pipeline.executors["circuit_breaker"]
    one.call()
    one.call()  # its hedge fails, and then it succeeds
    assert (breaker.state, breaker.details()["failures"]) == ("closed", 0)
    one.steps = ((0.5, ConnectionError("first")), (QUICK, ConnectionError("second")))
    one.begun = 0
    one.timed()
    assert breaker.state == "open"


@pytest.mark.parametrize("steps", [[None, None], ["fails", None], ["fails", "fails"]])
@pytest.mark.parametrize("slow", [False, True])
def test_a_round_over_fallback_values_is_one_probe_whichever_attempt_answers(
    service: Services, steps: list[Any], slow: bool
) -> None:
    one = service((QUICK, ConnectionError()))
    fallback = {"arg": "key", "values": ["a", "b"], "remember": 0}
    breaker = {"consecutive_failures": 1, "open_for": 1, "half_open_calls": 2}
    function: Any = one.sync if one.kind == "sync" else one.asynchronous

    def fetch(key: str = "") -> Any:
        return function()

    async def fetch_async(key: str = "") -> Any:
        return await function()

    bound = one.bound = Policy(hedge=EAGER, circuit_breaker=breaker, fallback=fallback).apply(
        fetch if one.kind == "sync" else fetch_async, clock=one.clock
    )
    circuit = bound.binding.pipeline.executors["circuit_breaker"]
    assert isinstance(one.timed()[0], AllFailedError)
    one.clock.advance(5)
    seconds = 0.5 if slow else QUICK
    one.begun, one.steps = 0, tuple((seconds, step and ConnectionError(step)) for step in steps)
    one.timed()
    assert circuit.state == ("open" if steps == ["fails", "fails"] else "half_open")
    if circuit.state == "half_open":
        one.begun, one.steps = 0, ((QUICK, None),)
        one.call()
        assert circuit.state == "closed"
    assert circuit.home.circuit.probes_begun == 0


@pytest.mark.parametrize(
    "limit", [{"rate_limit": {"rate": 0.1, "burst": 2}}, {"bulkhead": {"max_concurrent": 1, "max_wait": 9}}]
)
def test_a_hedge_that_would_have_to_wait_is_not_made_and_not_counted(service: Services, limit: dict[str, Any]) -> None:
    one = service((QUICK, None), (SLOW, None))
    one.bind(hedge={"after": 0.2, "budget": 1}, **limit)
    one.call()
    assert one.timed() == (1, SLOW)
    assert one.counts == (2, 2, 0, 0)
    assert (one.bound.stats.rejections, one.bound.stats.timeouts, one.bound.stats.waits) == (0, 0, 0)


def test_an_attempt_that_waits_for_its_permit_is_not_hedged(service: Services) -> None:
    one = service((QUICK, None))
    one.bind(hedge=EAGER, rate_limit={"rate": 1, "burst": 1})
    one.call()
    assert one.timed() == (1, 1.0)
    assert one.counts == (2, 2, 0, 0)


def test_an_argument_that_can_be_read_only_once_is_not_shared(service: Services) -> None:
    one = service((QUICK, None), (SLOW, None))
    one.bind(hedge=EAGER)
    one.call([1])
    assert one.timed(iter([1])) == (1, SLOW)
    assert one.timed(each for each in [1])[1] == SLOW
    assert one.bound.stats.hedges == 0


def test_no_hedge_begins_after_the_deadline(service: Services) -> None:
    one = service((QUICK, None), (SLOW, None))
    bound = one.bind(hedge=EAGER, timeout={"total": 0.9})
    one.call()
    found, took = one.timed()
    assert (type(found), took) == (CallTimeoutError, 0.9)
    assert bound.stats.hedges == 1
    assert one.most == 2


def test_a_nested_call_inherits_the_deadline_in_both_attempts() -> None:
    seen: list[Any] = []

    async def work() -> int:
        seen.append(opero.remaining())
        await asyncio.sleep(0.3 if len(seen) > 1 else 0)
        return len(seen)

    bound: Any = Policy(hedge={"after": 0.05, "budget": 1}, timeout=60).apply(work)

    async def main() -> None:
        await bound()
        with opero.deadline(5):
            await bound()

    asyncio.run(main())
    assert len(seen) == 3
    assert all(each is not None and 4 < each <= 5 for each in seen[1:])


# Context


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_both_attempts_see_the_callers_context_and_the_caller_sees_that_of_the_winner(kind: str) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[str] = []
    clock = VirtualClock()

    def note() -> tuple[int, float]:
        seen.append(variable.get())
        variable.set(f"attempt {len(seen)}")
        return len(seen), QUICK if len(seen) != 2 else SLOW

    def work() -> int:
        number, seconds = note()
        clock.sleep(seconds)
        return number

    async def work_async() -> int:
        number, seconds = note()
        await asyncio.sleep(seconds)
        return number

    bound: Any = Policy(hedge=EAGER).apply(work if kind == "sync" else work_async, clock=clock)

    async def main() -> None:
        for expected in (1, 3):
            variable.set("caller")
            assert (await bound() if kind == "async" else bound()) == expected
            assert variable.get() == f"attempt {expected}"

    if kind == "async":
        clock.run(main())
    else:
        run_blocking(main())
    assert seen == ["caller"] * 3


# Ends


def test_a_caller_that_is_cancelled_leaves_no_attempt_running() -> None:
    one = Service("async", (QUICK, None), (99.0, None))
    bound = one.bind(hedge=EAGER, bulkhead=5)

    async def main() -> None:
        await bound()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await bound()
        assert (one.most, one.running, len(asyncio.all_tasks())) == (2, 0, 1)

    one.clock.run(main())
    assert bound.binding.pipeline.executors["bulkhead"].running == 0


def test_a_loop_that_ends_with_a_call_pending_gives_back_its_slots() -> None:
    import gc

    begun: list[None] = []

    async def work() -> None:
        begun.append(None)
        await asyncio.sleep(1000 if len(begun) > 1 else 0)

    bound: Any = Policy(hedge={"after": 0.001, "budget": 1}, bulkhead=5).apply(work)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(bound())
    pending = loop.create_task(bound())

    async def until_hedged() -> None:
        while len(begun) < 3:
            await asyncio.sleep(0.001)

    loop.run_until_complete(until_hedged())
    pending._log_destroy_pending = False  # type: ignore[attr-defined]
    for each in asyncio.all_tasks(loop):
        each._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del pending, each
    gc.collect()
    eventually(lambda: bound.binding.pipeline.executors["bulkhead"].running == 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_at_once(service: Services, error: type[BaseException]) -> None:
    one = service((QUICK, None), (0.3, error()), (SLOW, None))
    one.bind(hedge=EAGER)
    one.call()
    with pytest.raises(error):
        one.call()


def test_failed_attempts_are_freed_without_a_garbage_collection() -> None:
    import gc
    import weakref

    class Error(ConnectionError):
        pass

    references: list[weakref.ref[Error]] = []

    async def work() -> int:
        await asyncio.sleep(0 if not references else 0.05)
        references.append(weakref.ref(error := Error()))
        if len(references) == 1:
            return 1
        try:
            raise error
        finally:
            del error

    bound: Any = Policy(hedge={"after": 0.01, "budget": 1}).apply(work)

    async def main() -> None:
        with suppress(Error):
            await bound()

    with asyncio.Runner() as runner:
        for _ in range(2):
            runner.run(main())
        gc.disable()
        try:
            runner.run(main())
            runner.run(asyncio.sleep(0))
            assert [each() for each in references] == [None] * len(references)
        finally:
            gc.enable()


@pytest.mark.parametrize("by_round", [False, True])
def test_while_too_many_attempts_are_left_behind_calls_run_in_their_own_thread_without_hedges(
    monkeypatch: pytest.MonkeyPatch, by_round: bool
) -> None:
    monkeypatch.setattr(helper_threads, "MAX_OF_ONE", 2)
    release, threads = threading.Event(), []

    def work(hangs: bool = False) -> None:
        threads.append(threading.current_thread().name)
        if hangs and len(threads) % 2:
            assert release.wait(30)

    probes = {"circuit_breaker": {"consecutive_failures": 1, "open_for": 1000}, "retry": {"retry_if_result": bool}}
    bound: Any = Policy(hedge={"after": 0.02, "budget": 1}, **(probes if by_round else {})).apply(work)
    before = abandoned()
    threads += ["before"] * 2
    for _ in range(2):
        bound(True)
    assert (abandoned() - before, bound.stats.hedges) == (2, 2)
    bound()
    assert threads[-1] == threading.current_thread().name
    if by_round:  # it is a probe, and has a result
        circuit = bound.binding.circuit_breaker
        circuit.change(enter, "half_open", circuit.clock.monotonic())
        bound()
        assert circuit.state == "closed"
    release.set()
    eventually(lambda: abandoned() == before)
    bound()
    assert threads[-1] != threading.current_thread().name


def test_a_fork_within_an_attempt_leaves_the_parents_call_to_the_parent() -> None:
    begun: list[None] = []

    def work() -> int:
        begun.append(None)
        if len(begun) == 2:
            if child := os.fork():
                return os.waitpid(child, 0)[1]
            os._exit(7)
        return 0

    bound: Any = Policy(hedge={"after": 5, "budget": 1}).apply(work)
    assert bound() == 0
    assert os.waitstatus_to_exitcode(bound()) == 7
    assert bound() == 0


def test_a_forked_child_hedges_with_threads_of_its_own() -> None:
    begun: list[None] = []

    def work() -> int:
        begun.append(None)
        time.sleep(0.3 if len(begun) in (2, 5) else 0)
        return len(begun)

    bound: Any = Policy(hedge={"after": 0.02, "budget": 1}).apply(work)
    assert (bound(), bound()) == (1, 3)
    child = os.fork()
    if not child:
        try:
            bound()
            os._exit(0 if bound() == 6 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Under trio


def test_it_works_under_trio() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    begun, cancelled = 0, []

    async def work(error: Exception | None = None) -> int:
        nonlocal begun
        begun += 1
        number = begun
        variable.set(number)
        try:
            await trio.sleep(5 if number == 2 else 0.01 if error is None else 0.1)
        except trio.Cancelled:
            cancelled.append(number)
            raise
        if error is not None:
            raise error
        return number

    bound: Any = Policy(hedge={"after": 0.05, "budget": 1}, bulkhead=5).apply(work)

    async def main() -> None:
        assert await bound() == 1
        assert await bound() == 3
        assert (cancelled, variable.get()) == ([2], 3)
        first = ConnectionError("first")
        with pytest.raises(ConnectionError) as caught:
            await bound(first)
        assert caught.value is first
        assert begun == 5
        with trio.move_on_after(0.08) as scope:
            await bound(first)
        assert scope.cancelled_caught
        assert cancelled[1:] in ([6, 7], [7, 6])
        assert bound.binding.pipeline.executors["bulkhead"].running == 0

    trio.run(main)


# Measurements


def test_what_is_measured_and_saved_up_outlives_a_change_of_the_policy() -> None:
    registry = Registry({"api": Policy(hedge={"after": "p95", "budget": 1})})
    clock = VirtualClock()

    @opero.opero(policy="api", registry=registry, clock=clock)
    async def work(seconds: float = QUICK) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def main() -> None:
        for _ in range(40):
            await work()
        registry.override({"api": {"hedge": {"after": "p90", "budget": "50%"}}}).__enter__()
        started = clock.monotonic()
        await work(9.0)
        assert clock.monotonic() - started == 9.0
        assert work.stats.hedges == 1

    clock.run(main())


def test_it_hedges_in_the_worker_processes_of_a_map() -> None:
    policy = Policy(hedge={"after": "1ms", "budget": 1}, parallel={"mode": "process", "workers": 1})
    bound: Any = policy.apply(nap)
    assert bound.map([0.0, 0.05, 0.0]) == [0.0, 0.05, 0.0]
    assert bound.stats.hedges >= 1
    assert bound.stats.attempts == 3 + bound.stats.hedges


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


# The laws

executions = st.lists(
    st.tuples(st.sampled_from([0.05, 0.1, 0.3, 1.0]), st.sampled_from([None, None, ConnectionError("down")])),
    min_size=1,
    max_size=30,
)
hedges = st.fixed_dictionaries(
    {
        "after": st.sampled_from([0.01, 0.1, 0.2, "p50"]),
        "max": st.integers(1, 3),
        "budget": st.sampled_from([0.05, 0.5, 1]),
    }
)


@settings(max_examples=100)
@given(steps=executions, hedge=hedges, together=st.integers(1, 4), limited=st.booleans(), retries=st.integers(0, 2))
def test_each_call_has_one_outcome_and_attempts_add_up(
    steps: list[Any], hedge: dict[str, Any], together: int, limited: bool, retries: int
) -> None:
    one = Service("async", *steps)
    limits: dict[str, Any] = {
        "bulkhead": {"max_concurrent": 2, "max_wait": None},
        "rate_limit": {"rate": 20, "burst": 3},
        "circuit_breaker": {"consecutive_failures": 4, "open_for": 0.2},
    }
    bound = one.bind(hedge=hedge, retry={"retries": retries, "min_delay": 0}, **(limits if limited else {}))

    async def main() -> list[Any]:
        return [
            each
            for _ in range(8)
            for each in await asyncio.gather(*(bound() for _ in range(together)), return_exceptions=True)
        ]

    outcomes = one.clock.run(main())
    stats = bound.stats
    assert len(outcomes) == stats.calls == 8 * together
    assert one.begun == stats.attempts
    assert one.running == 0
    assert stats.failures == sum(isinstance(each, BaseException) for each in outcomes)
    if not limited:
        assert stats.attempts == stats.calls + stats.retries + stats.hedges
    assert stats.hedges <= hedge["budget"] * (stats.attempts - stats.hedges) + 1e-6
    results = [each for each in outcomes if not isinstance(each, BaseException)]
    assert len(set(results)) == len(results)  # each is of an execution of its own
    if limited:
        assert one.most <= 2
        assert bound.binding.pipeline.executors["bulkhead"].running == 0


CALLS = 5_000


def slowest_percent(policy: dict[str, Any]) -> tuple[float, int]:
    """Return what 99% of the calls of a function take at most, and how often it was executed."""
    random, clock, executions = Random(7), VirtualClock(), 0
    durations = [SLOW] * 50 + [QUICK] * 950

    async def work() -> None:
        nonlocal executions
        if executions % 1000 == 0:
            random.shuffle(durations)
        executions += 1
        await asyncio.sleep(durations[executions % 1000])

    bound: Any = Policy(**policy).apply(work, clock=clock)

    async def main() -> list[float]:
        found = []
        for _ in range(CALLS):
            started = clock.monotonic()
            await bound()
            found.append(clock.monotonic() - started)
        return found

    return sorted(clock.run(main()))[int(0.99 * CALLS)], executions


@pytest.mark.parametrize("after", ["p95", "200ms"])
def test_with_five_percent_ten_times_as_slow_the_slowest_percent_takes_less_than_half_at_six_percent_more(
    after: str,
) -> None:
    without, _ = slowest_percent({})
    took, executions = slowest_percent({"hedge": {"after": after, "budget": "5%"}})
    assert took <= 0.4 * without
    assert executions <= 1.06 * CALLS
