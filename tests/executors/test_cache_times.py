"""For how long a result is served: stale ones, early refreshes, jitter, errors, and times to live that adapt."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import Any

import pytest

from opero import AdaptiveTTL, AllFailedError, CircuitOpenError, Event, Policy, on
from opero.testing import VirtualClock


@pytest.fixture
def events() -> Any:
    """What happened, by the names of the events that a test asks for."""
    seen: list[Event] = []
    offs: list[Any] = []

    def watch(*names: str) -> list[Event]:
        offs.extend(on(name, seen.append) for name in names)
        return seen

    yield watch
    for off in offs:
        off()


class Versions:
    """An async function that answers with how often it has been called, after a second."""

    def __init__(self, clock: VirtualClock, **cache: Any) -> None:
        self.clock = clock
        self.calls = 0
        self.error: Exception | None = None

        async def version(key: str = "a") -> int:
            self.calls += 1
            number = self.calls
            await asyncio.sleep(1)
            if self.error is not None:
                raise self.error
            return number

        self.bound: Any = Policy(cache=cache).apply(version, clock=clock)

    async def after(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return int(await self.bound())


def test_a_stale_result_is_served_at_once_while_one_caller_refreshes_it() -> None:
    clock = VirtualClock()
    versions = Versions(clock, ttl=10, stale_ttl=60)

    async def main() -> None:
        assert await versions.after(0) == 1
        started = clock.monotonic()
        assert await versions.after(15) == 1
        assert await asyncio.gather(*(versions.bound() for _ in range(20))) == [1] * 20
        assert clock.monotonic() == started + 15  # nobody waited
        assert await versions.after(2) == 2
        assert versions.calls == 2

    clock.run(main())
    assert (versions.bound.stats.cache_hits, versions.bound.stats.cache_misses) == (22, 1)


def test_a_stale_result_is_served_on_while_refreshing_fails_and_not_after_its_time(events: Any) -> None:
    clock = VirtualClock()
    versions = Versions(clock, ttl=10, stale_ttl=60)
    failed = events("cache_refresh_failed")

    async def main() -> None:
        assert await versions.after(0) == 1
        versions.error = ConnectionError("down")
        for _ in range(5):
            assert await versions.after(11) == 1
        with pytest.raises(ConnectionError):
            await versions.after(15)

    clock.run(main())
    assert versions.calls == 7
    assert len(failed) == 1  # one a minute, however many there were
    assert isinstance(failed[0].error, ConnectionError)


def test_after_a_failed_refresh_callers_do_not_try_again_at_once() -> None:
    clock = VirtualClock()
    versions = Versions(clock, ttl=10, stale_ttl=60)

    async def main() -> None:
        await versions.after(0)
        versions.error = ConnectionError()
        await versions.after(11)
        await asyncio.sleep(1.01)  # the refresh has failed by now
        assert [await versions.after(0.1) for _ in range(8)] == [1] * 8
        assert versions.calls == 2
        assert await versions.after(0.5) == 1
        await asyncio.sleep(0)
        assert versions.calls == 3

    clock.run(main())


def test_a_sync_caller_gets_a_stale_result_at_once_and_a_thread_refreshes_it() -> None:
    clock, refreshed = VirtualClock(), threading.Event()
    calls: list[str] = []

    def version() -> int:
        calls.append(threading.current_thread().name)
        if len(calls) > 1:
            refreshed.set()
        return len(calls)

    bound = Policy(cache={"ttl": 10, "stale_ttl": 60}).apply(version, clock=clock)
    assert bound() == 1
    clock.advance(11)
    assert bound() == 1
    assert refreshed.wait(60)
    until = time.monotonic() + 60
    while bound() == 1 and time.monotonic() < until:
        time.sleep(0.001)
    assert bound() == 2
    assert calls[0] == threading.current_thread().name != calls[1]


def test_an_early_refresh_keeps_a_result_in_demand_from_ever_expiring() -> None:
    clock = VirtualClock()
    versions = Versions(clock, ttl=10, early_refresh=4)

    async def main() -> None:
        assert await versions.after(0) == 1
        assert await versions.after(5.9) == 1
        await asyncio.sleep(0)
        assert versions.calls == 1  # not yet
        assert await versions.after(1) == 1
        assert await versions.after(2) == 2
        assert await versions.after(20) == 3  # nobody asked in time

    clock.run(main())


def test_results_made_together_do_not_expire_together() -> None:
    clock = VirtualClock()
    calls: list[int] = []
    bound = Policy(cache={"ttl": 100, "ttl_jitter": 0.5}).apply(lambda key: calls.append(key) or key, clock=clock)
    for key in range(200):
        bound(key)
    assert len(calls) == 200
    expired_at: list[int] = []
    for _ in range(11):
        before = len(calls)
        kept = [key for key in range(200) if bound.cache_get(key) is not None]
        expired_at.append(200 - len(kept))
        assert len(calls) == before
        clock.advance(10)
    assert expired_at[:5] == [0] * 5  # none before half its time
    assert all(later > earlier for earlier, later in itertools.pairwise(expired_at[6:]))
    assert expired_at[-1] == 200


def test_cache_if_decides_by_the_result_and_its_failure_costs_no_answer(bind: Any, script: Any, events: Any) -> None:
    not_stored = events("cache_not_stored")
    call = bind(Policy(cache={"cache_if": lambda result: result["ok"]}), script({"ok": False}, {"ok": True}, {}))
    assert [call(), call(), call()] == [{"ok": False}, {"ok": True}, {"ok": True}]
    bind.bound.cache_clear()
    assert call() == {}
    assert "the cache_if function failed with KeyError: 'ok'" in not_stored[0].message


def test_errors_are_kept_where_the_policy_says_so_each_caller_getting_one_of_its_own(bind: Any, script: Any) -> None:
    function = script(ConnectionError("down"), 1)
    call = bind(Policy(cache={"ttl": 60, "cache_errors": True, "error_ttl": 5}), function)
    caught: list[BaseException] = []
    for _ in range(3):
        with pytest.raises(ConnectionError, match="down") as raised:
            call()
        caught.append(raised.value)
    assert len(function.calls) == 1
    assert len({id(error) for error in caught}) == 3
    assert bind.bound.cache_get() is None
    bind.clock.advance(6)
    assert call() == 1
    bind.clock.advance(50)
    assert call() == 1


def test_what_retries_came_to_is_kept_and_a_rejection_is_not(bind: Any, script: Any) -> None:
    function = script(ConnectionError())
    call = bind(Policy(cache={"cache_errors": True}, retry={"retries": 1, "min_delay": 1}), function)
    for _ in range(2):
        with pytest.raises(AllFailedError):
            call()
    assert len(function.calls) == 2

    breaking = script(ConnectionError(), 1)
    call = bind(Policy(cache={"cache_errors": True, "key": lambda key: key}, circuit_breaker=1), breaking)
    with pytest.raises(ConnectionError):
        call(1)
    with pytest.raises(CircuitOpenError):
        call(2)
    bind.clock.advance(61)
    assert call(2) == 1


def test_the_first_caller_of_a_kept_error_gets_its_whole_traceback(script: Any) -> None:
    bound = Policy(cache={"cache_errors": True}).apply(script(KeyError("a")))
    with pytest.raises(KeyError) as first:
        bound()
    with pytest.raises(KeyError) as second:
        bound()
    assert "conftest.py" in str(first.traceback[-1].path)
    assert len(second.traceback) < len(first.traceback)


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two


def test_an_error_that_does_not_copy_is_raised_itself(script: Any) -> None:
    bound = Policy(cache={"cache_errors": True}).apply(script(OddError(1, 2)))
    for _ in range(3):
        with pytest.raises(OddError) as caught:
            bound()
        assert caught.value.two == 2


def test_hot_keys_live_longer_and_cool_down(bind: Any) -> None:
    calls: list[str] = []
    ttl = AdaptiveTTL(cold=10, warm=100, hot=1000, warm_after=3, hot_after=6, window="1h")
    call = bind(Policy(cache={"ttl": ttl}), lambda key: calls.append(key) or len(calls))

    def lifetime(key: str) -> int:
        """Seconds until a result that is stored now is computed anew."""
        bind.bound.cache_delete(key)
        call(key)
        before, waited = len(calls), 0
        cache = bind.bound.binding.cache
        while bind.bound.cache_get(key) is not None:
            bind.clock.advance(5)
            waited += 5
        assert cache is not None
        assert len(calls) == before
        return waited

    assert lifetime("a") == 10
    for _ in range(2):
        call("a")
    assert lifetime("a") == 100
    for _ in range(3):
        call("a")
    assert lifetime("a") == 1000
    assert lifetime("b") == 10  # keys are counted apart
    bind.clock.advance(3 * 3600)
    assert lifetime("a") == 10


def test_the_access_pattern_strategy_is_one_line_of_configuration() -> None:
    bound = Policy.from_options(cache_ttl="adaptive").apply(lambda key: key, clock=VirtualClock())
    for _ in range(200):
        bound("hot")
    bound("cold")
    bound.cache_set("hot", "hot")
    bound.binding.clock.advance(3000)
    assert bound.cache_get("hot") == "hot"
    assert bound.cache_get("cold") is None


@pytest.mark.parametrize("given", [-1, "-1s", None, "soon", object(), True])
def test_a_ttl_function_that_gives_no_time_costs_no_answer_and_is_told_once(
    bind: Any, script: Any, events: Any, given: Any
) -> None:
    not_stored = events("cache_not_stored")
    call = bind(Policy(cache={"ttl": lambda: given}), script(1, 2, 3))
    assert [call(), call(), call()] == [1, 2, 3]
    assert len(not_stored) == 1
    assert not_stored[0].subject == bind.bound.binding.cache.name


def test_a_ttl_function_may_say_not_to_keep_a_result(bind: Any, script: Any, events: Any) -> None:
    not_stored = events("cache_not_stored")
    call = bind(Policy(cache={"ttl": lambda: 0}), script(1, 2))
    assert [call(), call(), not_stored] == [1, 2, []]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_map_takes_stale_results_only_for_items_that_fail(mode: str) -> None:
    clock = VirtualClock()
    down = False

    def fetch(key: int) -> str:
        if down and key == 1:
            raise ConnectionError
        return f"{key} {'new' if down else 'old'}"

    bound = Policy(cache={"ttl": 10, "stale_ttl": 60}, parallel=mode).apply(fetch, clock=clock)
    assert bound.map([1, 2]) == ["1 old", "2 old"]
    clock.advance(11)
    down = True
    assert bound.map([1, 2]) == ["1 old", "2 new"]
