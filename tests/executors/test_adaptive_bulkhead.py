"""A bulkhead that finds its limit, around real calls on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import BulkheadFullError, ConfigError, Policy, Registry, on, opmap
from opero.events import LimitChanged
from opero.executors.adaptive_bulkhead import AdaptiveBulkheadExecutor
from opero.executors.state.adaptive_slots import AdaptiveSlots
from opero.testing import VirtualClock
from parallel.functions import undecorated

ADAPTIVE: dict[str, Any] = {"max_concurrent": "adaptive", "max_wait": None}


def bulkhead_of(bound: Any) -> AdaptiveBulkheadExecutor:
    found: AdaptiveBulkheadExecutor = bound.binding.pipeline.executors["bulkhead"]
    return found


class OverloadedError(Exception):
    """What a client raises for HTTP 429."""

    status_code = 429


async def load(bound: Any, calls: int, callers: int) -> None:
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            with contextlib.suppress(Exception):
                await bound(number)

    await asyncio.gather(*(caller() for _ in range(callers)))


def service(knee: int, seconds: float = 0.05) -> Any:
    """An async function whose throughput has its knee there."""
    places: list[asyncio.Semaphore] = []
    drawn = random.Random(1)

    async def function(number: int) -> int:
        if not places:
            places.append(asyncio.Semaphore(knee))
        async with places[0]:
            await asyncio.sleep(seconds * drawn.uniform(0.8, 1.2))
        return number

    return function


def test_it_finds_the_knee_of_a_service_and_stays_there() -> None:
    clock, ended = VirtualClock(), list[float]()
    function = service(8)

    async def timed(number: int) -> None:
        await function(number)
        ended.append(clock.monotonic())

    bound = Policy(bulkhead=ADAPTIVE).apply(timed, clock=clock)
    clock.run(load(bound, 10_000, 100))
    assert 7 <= bulkhead_of(bound).load()[1] <= 12
    best = 8 / 0.05
    for first, last in ((300, 1000), (300, 10_000), (9000, 10_000)):
        assert (last - first) / (ended[last - 1] - ended[first - 1]) >= 0.95 * best


def test_threads_share_it() -> None:
    clock, function_lock = VirtualClock(), threading.Lock()
    running = most = 0

    def function() -> None:
        nonlocal running, most
        with function_lock:
            running += 1
            most = max(most, running)
        clock.sleep(0.05)
        with function_lock:
            running -= 1

    bound = Policy(bulkhead={**ADAPTIVE, "max_limit": 6}).apply(function, clock=clock)

    def caller() -> None:
        for _ in range(20):
            bound()

    threads = [threading.Thread(target=caller) for _ in range(10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert most == 6
    assert bulkhead_of(bound).load() == (0, 6, 0)


def test_the_limit_goes_down_when_calls_are_throttled(bind: Any) -> None:
    def function() -> None:
        raise OverloadedError

    call = bind(Policy(bulkhead={**ADAPTIVE, "initial_limit": 20}), function)
    for _ in range(40):
        with pytest.raises(OverloadedError):
            call()
    assert bulkhead_of(bind.bound).load()[1] < 17


def test_what_is_throttled_may_be_stated(bind: Any) -> None:
    def function() -> None:
        raise KeyError

    call = bind(Policy(bulkhead={**ADAPTIVE, "initial_limit": 20}, failures={"throttled": "KeyError"}), function)
    for _ in range(40):
        with pytest.raises(KeyError):
            call()
    assert bulkhead_of(bind.bound).load()[1] < 17


def test_a_response_that_says_so_is_returned_and_counts(bind: Any) -> None:
    class Response:
        status_code = 429
        headers: dict[str, str] = {}

        def raise_for_status(self) -> None: ...

    call = bind(Policy(bulkhead={**ADAPTIVE, "initial_limit": 20}), Response)
    for _ in range(40):
        assert call().status_code == 429
    assert bulkhead_of(bind.bound).load()[1] < 17


def test_cancelled_calls_say_nothing() -> None:
    clock = VirtualClock()
    bound = Policy(bulkhead=ADAPTIVE).apply(service(8), clock=clock)

    async def main() -> None:
        for number in range(30):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await bound(number)

    clock.run(main())
    home = bulkhead_of(bound).home
    assert (home.state.measured.calls, home.running()) == (0, 0)


def test_a_generator_is_measured_to_its_end(bind: Any) -> None:
    clock = VirtualClock()

    def function() -> Iterator[int]:
        yield 1
        clock.advance(3)
        yield 2

    bound = Policy(bulkhead=ADAPTIVE).apply(function, clock=clock)
    assert list(bound()) == [1, 2]
    assert bulkhead_of(bound).home.state.measured.seconds == 3


def test_an_event_tells_of_a_new_limit_at_most_once_a_second() -> None:
    seen: list[LimitChanged] = []
    hooked: list[LimitChanged] = []
    clock = VirtualClock()
    policy = Policy(bulkhead=ADAPTIVE, hooks={"on_limit_change": hooked.append})
    bound = Registry({"api": policy}).bind(service(30), "api", clock=clock)
    times: list[float] = []

    def saw(event: LimitChanged) -> None:
        seen.append(event)
        times.append(clock.monotonic())

    off = on(LimitChanged, saw)
    clock.run(load(bound, 5000, 200))
    off()
    assert seen == hooked
    first, last = seen[0], seen[-1]
    assert (first.what, first.policy, first.function, first.before) == ("bulkhead", "api", "", 4)
    assert 25 <= last.after <= 45
    assert all(one.after == other.before for one, other in itertools.pairwise(seen))
    assert all(other - one >= 1 for one, other in itertools.pairwise(times))


def test_its_limit_is_seen_in_the_statistics() -> None:
    clock = VirtualClock()
    registry = Registry({"api": Policy(bulkhead=ADAPTIVE)})
    bound = registry.bind(service(8), "api", clock=clock)
    clock.run(load(bound, 1000, 50))
    shown = registry.stats()["profiles"]["api"]["state"]["bulkhead"]
    assert shown == {"slots": bulkhead_of(bound).home.limit, "in_use": 0, "queue": 0}
    assert 7 <= shown["slots"] <= 12


def test_another_policy_keeps_what_has_been_found() -> None:
    clock = VirtualClock()
    function = service(8)
    bound: Any = Policy(bulkhead=ADAPTIVE).apply(function, clock=clock)
    clock.run(load(bound, 2000, 50))
    found = bulkhead_of(bound).home.state.found
    for change, limits in (
        ({"max_wait": 5}, {found}),
        ({"max_limit": 150}, range(found - 1, found + 2)),
        ({"max_limit": 5}, {5}),
        ({"max_limit": 200, "min_limit": 4}, {5}),
    ):
        bound.binding.swap(Policy(bulkhead={**ADAPTIVE, **change}))  # type: ignore[dict-item]
        assert bulkhead_of(bound).home.state.found in limits
        assert bulkhead_of(bound).load()[1] == bulkhead_of(bound).home.state.limit
    bound.binding.swap(Policy(bulkhead=20))
    assert bulkhead_of(bound).load()[1] == 20
    bound.binding.swap(Policy(bulkhead=ADAPTIVE))
    assert bulkhead_of(bound).load() == (0, 4, 0)
    clock.run(load(bound, 2000, 50))
    assert 7 <= bulkhead_of(bound).home.state.found <= 12


def test_calls_that_run_during_a_change_count_for_the_policy_after_it() -> None:
    clock = VirtualClock()
    bound: Any = Policy(bulkhead=ADAPTIVE).apply(service(8), clock=clock)

    async def main() -> None:
        calls = [asyncio.ensure_future(bound(number)) for number in range(10)]
        await asyncio.sleep(0.01)
        for policy in ({**ADAPTIVE, "max_wait": 9}, {"max_concurrent": 3, "max_wait": None}, ADAPTIVE):
            bound.binding.swap(Policy(bulkhead=policy))
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*calls) == list(range(10))

    clock.run(main())
    assert bulkhead_of(bound).running == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 3)),
        min_size=20,
        max_size=60,
    ),
    st.integers(1, 3),
    st.integers(0, 4),
)
def test_no_slot_is_lost_and_never_more_run_than_the_limit_was_when_they_began(
    calls: list[Any], least: int, more: int
) -> None:
    clock, running = VirtualClock(), 0

    async def function(seconds: float, outcome: int) -> None:
        nonlocal running
        running += 1
        assert running <= least + more
        try:
            await asyncio.sleep(seconds)
            if outcome > 1:
                raise (OverloadedError if outcome > 2 else ConnectionError)
        finally:
            running -= 1

    policy = {"max_concurrent": "adaptive", "min_limit": least, "max_limit": least + more, "max_wait": 1}
    bound = Policy(bulkhead=policy).apply(function, clock=clock)

    async def caller(at: float, seconds: float, patience: float | None, outcome: int) -> None:
        await asyncio.sleep(at)
        with contextlib.suppress(TimeoutError, ConnectionError, OverloadedError, BulkheadFullError):
            async with asyncio.timeout(patience):
                await bound(seconds, outcome)

    async def main() -> None:
        await asyncio.gather(*(caller(*call) for call in calls))

    clock.run(main())
    bulkhead = bulkhead_of(bound)
    assert (bulkhead.running, len(bulkhead.home.queue), running) == (0, 0, 0)
    assert least <= bulkhead.home.limit <= least + more


def test_worker_processes_are_refused_and_mode_auto_does_without_them() -> None:
    with pytest.raises(ConfigError, match="adaptive finds its limit by the calls of one process.* use mode='thread'"):
        opmap(mode="process", workers=2, bulkhead={"max_concurrent": "adaptive", "max_wait": 1})(undecorated)
    assert opmap(bulkhead=ADAPTIVE, progress=False)(undecorated)(range(50)) == [each + 1 for each in range(50)]


def test_in_a_forked_child_all_slots_are_free() -> None:
    bound = Policy(bulkhead=ADAPTIVE).apply(lambda: None)
    bound()
    home = bulkhead_of(bound).home
    assert isinstance(home, AdaptiveSlots)
    assert home.take()
    home.after_fork()
    assert home.running() == 0


def test_slots_that_worker_processes_have_shared_become_adaptive() -> None:
    bound: Any = opmap(mode="process", workers=2, bulkhead={"max_concurrent": 2, "max_wait": None}, progress=False)(
        undecorated
    )
    assert bound([1, 2, 3]) == [2, 3, 4]
    bulkhead = bound.binding.pipeline.executors["bulkhead"]
    assert bulkhead.home.is_shared
    assert bulkhead.take()
    bound.binding.swap(Policy.from_options(bulkhead=ADAPTIVE, mode="thread", progress=False))
    assert bulkhead_of(bound).load() == (1, 4, 0)
    bulkhead.leave()
    assert bulkhead_of(bound).load() == (0, 4, 0)
    assert bound(range(30)) == list(range(1, 31))


def test_it_may_become_a_limit_that_processes_share_and_back() -> None:
    bound: Any = Policy(bulkhead=ADAPTIVE).apply(undecorated)
    bound(1)
    assert bulkhead_of(bound).take()
    bound.binding.swap(Policy(bulkhead={"max_concurrent": 3, "share": "machine", "share_as": "adaptive-test"}))
    assert bulkhead_of(bound).load() == (1, 3, 0)
    bound.binding.swap(Policy(bulkhead=ADAPTIVE))
    assert bulkhead_of(bound).load() == (1, 4, 0)
    bulkhead_of(bound).leave()
    assert bulkhead_of(bound).load() == (0, 4, 0)
