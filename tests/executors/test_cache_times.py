"""Times: stale results, background refresh, jitter, cached errors, and adaptive times to live."""

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
    """The events that occurred, by the names that a test asks for."""
    seen: list[Event] = []
    offs: list[Any] = []

    def watch(*names: str) -> list[Event]:
        offs.extend(on(name, seen.append) for name in names)
        return seen

    yield watch
    for off in offs:
        off()


class Versions:
    """An async function that returns the number of its calls after a second."""

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
        assert clock.monotonic() == started + 15  # no caller waited
        assert await versions.after(2) == 2
        assert versions.calls == 2

    clock.run(main())
    assert (versions.bound.stats.cache_hits, versions.bound.stats.cache_misses) == (22, 1)


def test_a_stale_result_is_served_while_refreshes_fail_until_stale_ttl_ends(events: Any) -> None:
    clock = VirtualClock()
    versions = Versions(clock, ttl=10, stale_ttl=60)
    failed = events("cache_failed")

    async def main() -> None:
        assert await versions.after(0) == 1
        versions.error = ConnectionError("down")
        for _ in range(5):
            assert await versions.after(11) == 1
        with pytest.raises(ConnectionError):
            await versions.after(15)

    clock.run(main())
    assert versions.calls == 7
    assert len(failed) == 1  # throttled to one a minute
    assert isinstance(failed[0].error, ConnectionError)


def test_after_a_failed_refresh_there_is_a_pause_before_the_next() -> None:
    clock = VirtualClock()
    versions = Versions(clock, ttl=10, stale_ttl=60)

    async def main() -> None:
        await versions.after(0)
        versions.error = ConnectionError()
        await versions.after(11)
        await asyncio.sleep(1.01)  # until the refresh has failed
        assert [await versions.after(0.1) for _ in range(8)] == [1] * 8
        assert versions.calls == 2
        assert await versions.after(0.5) == 1
        await asyncio.sleep(0)
        assert versions.calls == 3

    clock.run(main())


def test_a_sync_caller_gets_a_stale_result_at_once_while_a_thread_refreshes_it() -> None:
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


def test_with_early_refresh_a_requested_result_never_expires() -> None:
    clock = VirtualClock()
    versions = Versions(clock, ttl=10, early_refresh=4)

    async def main() -> None:
        assert await versions.after(0) == 1
        assert await versions.after(5.9) == 1
        await asyncio.sleep(0)
        assert versions.calls == 1  # too early for a refresh
        assert await versions.after(1) == 1
        assert await versions.after(2) == 2
        assert await versions.after(20) == 3  # no call within the time to live

    clock.run(main())


def test_jitter_spreads_the_expiry_of_results_stored_together() -> None:
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
    assert expired_at[:5] == [0] * 5  # none before half of its time to live
    assert all(later > earlier for earlier, later in itertools.pairwise(expired_at[6:]))
    assert expired_at[-1] == 200


def test_cache_if_decides_by_the_result_and_its_failure_does_not_fail_the_call(
    bind: Any, script: Any, events: Any
) -> None:
    not_stored = events("cache_failed")
    call = bind(Policy(cache={"cache_if": lambda result: result["ok"]}), script({"ok": False}, {"ok": True}, {}))
    assert [call(), call(), call()] == [{"ok": False}, {"ok": True}, {"ok": True}]
    bind.bound.cache_clear()
    assert call() == {}
    assert "the cache_if function raised KeyError: 'ok'" in not_stored[0].message


def test_with_cache_errors_each_caller_gets_a_copy_of_the_error(bind: Any, script: Any) -> None:
    function = script(ConnectionError("down"), 1)
    call = bind(Policy(cache={"ttl": 60, "errors": True, "error_ttl": 5}), function)
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


def test_the_error_after_retries_is_cached_and_a_rejection_is_not(bind: Any, script: Any) -> None:
    function = script(ConnectionError())
    call = bind(Policy(cache={"errors": True}, retry={"retries": 1, "min_delay": 1}), function)
    for _ in range(2):
        with pytest.raises(AllFailedError):
            call()
    assert len(function.calls) == 2

    breaking = script(ConnectionError(), 1)
    call = bind(Policy(cache={"errors": True, "key": lambda key: key}, circuit_breaker=1), breaking)
    with pytest.raises(ConnectionError):
        call(1)
    with pytest.raises(CircuitOpenError):
        call(2)
    bind.clock.advance(66)  # 60 s, and a tenth of them at most
    assert call(2) == 1


def test_the_first_caller_of_a_cached_error_gets_its_whole_traceback(script: Any) -> None:
    bound = Policy(cache={"errors": True}).apply(script(KeyError("a")))
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


def test_an_error_that_cannot_be_copied_is_raised_itself(script: Any) -> None:
    bound = Policy(cache={"errors": True}).apply(script(OddError(1, 2)))
    for _ in range(3):
        with pytest.raises(OddError) as caught:
            bound()
        assert caught.value.two == 2


def test_frequently_requested_keys_live_longer_until_requests_decline(bind: Any) -> None:
    calls: list[str] = []
    ttl = AdaptiveTTL(cold=10, warm=100, hot=1000, warm_after=3, hot_after=6, window="1h")
    call = bind(Policy(cache={"ttl": ttl}), lambda key: calls.append(key) or len(calls))

    def lifetime(key: str) -> int:
        """Seconds until a result that is stored now expires."""
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
    assert lifetime("b") == 10  # each key has its own count
    bind.clock.advance(3 * 3600)
    assert lifetime("a") == 10


def test_an_adaptive_ttl_is_one_line_of_configuration() -> None:
    bound = Policy.from_options(cache_ttl="adaptive").apply(lambda key: key, clock=VirtualClock())
    for _ in range(200):
        bound("hot")
    bound("cold")
    bound.cache_set("hot", "hot")
    bound.binding.clock.advance(3000)
    assert bound.cache_get("hot") == "hot"
    assert bound.cache_get("cold") is None


@pytest.mark.parametrize("given", [-1, "-1s", None, "soon", object(), True])
def test_an_invalid_result_of_a_ttl_function_is_reported_once_and_does_not_fail_the_call(
    bind: Any, script: Any, events: Any, given: Any
) -> None:
    not_stored = events("cache_failed")
    call = bind(Policy(cache={"ttl": lambda: given}), script(1, 2, 3))
    assert [call(), call(), call()] == [1, 2, 3]
    assert len(not_stored) == 1
    assert not_stored[0].cache == bind.bound.binding.cache.name


def test_a_ttl_function_can_prevent_caching(bind: Any, script: Any, events: Any) -> None:
    not_stored = events("cache_failed")
    call = bind(Policy(cache={"ttl": lambda: 0}), script(1, 2))
    assert [call(), call(), not_stored] == [1, 2, []]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_map_uses_stale_results_only_for_items_that_fail(mode: str) -> None:
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
