"""Several limits in one policy, and costs that are estimates: what callers of every kind see of them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import opero
from opero import BulkheadFullError, CallTimeoutError, Policy, RateLimitExceededError, RateLimitPolicy
from opero.testing import VirtualClock

MODEL = [
    {"rate": "6000/min", "burst": 100},
    {"rate": "60000/min", "burst": 20000, "cost": "tokens", "cost_from_result": "usage.total_tokens"},
]


def limits_of(function: Any) -> Any:
    return function.binding.resolved().executors["rate_limit"].limiter


def free_of(function: Any, name: str = "tokens") -> float:
    """How many permits of a limit are free; negative if calls have to wait."""
    limiter = limits_of(function)
    _, terms, accounts = limiter.home.state
    index = limiter.names.index(name)
    debt = max(0.0, accounts[index].due - limiter.clock.monotonic()) / terms[index].interval
    return round(terms[index].burst - debt, 3)


def most_within(used: list[tuple[float, float]], window: float) -> float:
    """The most that any window of time has."""
    used = sorted(used)
    return max(
        sum(tokens for moment, tokens in used[first:] if moment < used[first][0] + window) for first in range(len(used))
    )


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


class Service:
    """A model API that counts what it is asked for."""

    def __init__(self, clock: VirtualClock, seconds: float = 2.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.used: list[tuple[float, float]] = []

    def answer(self, tokens: float) -> Any:
        self.used.append((self.clock.monotonic(), tokens / 4))
        return SimpleNamespace(usage={"total_tokens": tokens / 4})

    def ask(self, tokens: float) -> Any:
        answer = self.answer(tokens)
        self.clock.sleep(self.seconds)
        return answer

    async def ask_async(self, tokens: float) -> Any:
        answer = self.answer(tokens)
        await self.clock.async_sleep(self.seconds)
        return answer

    def assert_the_quota_is_used(self, seconds: float) -> None:
        """At least 95% of what falls due, and the burst besides, and in no window more than both."""
        total = sum(tokens for _, tokens in self.used)
        assert total >= 0.95 * 1000 * seconds
        for window in (1, 5, 20, 60):
            assert most_within(self.used, window) <= 20000 + 1000 * window


def test_tasks_use_a_quota_of_tokens_although_their_estimates_are_four_times_too_high(clock: VirtualClock) -> None:
    service = Service(clock)
    ask = Policy(rate_limit=MODEL).apply(service.ask_async, clock=clock)

    async def main() -> None:
        await asyncio.gather(*(ask(tokens=1000 + 500 * (number % 9)) for number in range(600)))

    clock.run(main())
    service.assert_the_quota_is_used(clock.now - 1000 - service.seconds)
    assert len(service.used) == 600


def test_threads_use_a_quota_of_tokens_although_their_estimates_are_four_times_too_high(clock: VirtualClock) -> None:
    service = Service(clock)
    ask = Policy(rate_limit=MODEL).apply(service.ask, clock=clock)
    numbers = iter(range(300))

    def work() -> None:
        while (number := next(numbers, None)) is not None:
            ask(tokens=1000 + 500 * (number % 9))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.assert_the_quota_is_used(clock.now - 1000 - service.seconds)
    assert len(service.used) == 300


def test_a_call_waits_for_the_slowest_of_its_limits(clock: VirtualClock) -> None:
    waited: list[Any] = []
    policy = Policy(rate_limit=[{"rate": 2}, {"rate": 10, "burst": 20, "cost": "n"}], hooks={"on_wait": waited.append})
    call = policy.apply(lambda n: clock.now, clock=clock)
    assert [call(1), call(1), call(18), call(7), call(1)] == [1000, 1000.5, 1001, 1001.5, 1002]
    assert [(each.what, each.limit, each.seconds) for each in waited] == [
        ("rate_limit", "requests", 0.5),
        ("rate_limit", "requests", 0.5),
        ("rate_limit", "requests", 0.5),
        ("rate_limit", "requests", 0.5),
    ]
    assert call(20) == 1003.6
    assert waited[-1].limit == "n"
    assert call.stats.waited_for == {"rate_limit": pytest.approx(3.6)}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_that_would_wait_too_long_takes_nothing(clock: VirtualClock, is_async: bool) -> None:
    rejected: list[Any] = []
    policy = Policy(
        rate_limit={"limits": [{"rate": 10, "burst": 5}, {"rate": 10, "burst": 20, "cost": "n"}], "max_wait": 1},
        hooks={"on_reject": rejected.append},
    )
    call = run_either(policy, clock, is_async, lambda n: n)
    call(20)
    with pytest.raises(RateLimitExceededError, match=r"the next permit of n \(10/s\) is 2s away, and max_wait is 1s"):
        call(20)
    assert free_of(call.bound, "requests") == 4
    assert free_of(call.bound, "n") == 0
    assert [(each.by, each.limit, each.retry_in) for each in rejected] == [("rate_limit", "n", 2)]
    assert call(10) == 10
    assert clock.now == 1001


def run_either(policy: Policy, clock: VirtualClock, is_async: bool, function: Callable[..., Any]) -> Any:
    """Bind a function as it is or as an async one; the result is called the same way."""
    if not is_async:
        bound = policy.apply(function, clock=clock)
        bound.bound = bound  # type: ignore[attr-defined]
        return bound

    async def wrapped(n: float) -> Any:
        return function(n)

    other = policy.apply(wrapped, clock=clock)

    def call(n: float) -> Any:
        return clock.run(other(n))

    call.bound = other  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_that_the_bulkhead_rejects_gives_its_permits_back(clock: VirtualClock, is_async: bool) -> None:
    policy = Policy(rate_limit=[{"rate": 10, "burst": 5}, {"rate": 10, "burst": 20, "cost": "n"}], bulkhead=1)
    inner: list[Any] = []

    def rejected(n: float) -> None:
        with pytest.raises(BulkheadFullError):
            bound(5)
        inner.append((free_of(bound, "requests"), free_of(bound, "n")))

    async def rejected_async(n: float) -> None:
        with pytest.raises(BulkheadFullError):
            await bound(5)
        inner.append((free_of(bound, "requests"), free_of(bound, "n")))

    bound: Any = policy.apply(rejected_async if is_async else rejected, clock=clock)
    if is_async:
        clock.run(bound(8))
    else:
        bound(8)
    assert inner == [(4, 12)]


def test_a_call_that_is_cancelled_in_the_queue_of_the_bulkhead_gives_its_permits_back(clock: VirtualClock) -> None:
    policy = Policy(
        rate_limit=[{"rate": 10, "burst": 5}, {"rate": 1, "burst": 20, "cost": "n"}],
        bulkhead={"max_concurrent": 1, "max_wait": None},
    )

    async def slow(n: float) -> None:
        await clock.async_sleep(1)

    bound = policy.apply(slow, clock=clock)

    async def main() -> None:
        first, second = asyncio.ensure_future(bound(8)), asyncio.ensure_future(bound(5))
        await clock.async_sleep(0.5)
        second.cancel()
        await asyncio.wait([first, second])

    clock.run(main())
    assert free_of(bound, "n") == 13


def test_a_call_that_is_cancelled_while_it_waits_takes_nothing_and_lets_the_next_one_go_on(clock: VirtualClock) -> None:
    policy = Policy(rate_limit=[{"rate": 10, "burst": 5}, {"rate": 1, "burst": 20, "cost": "n"}])
    began: list[tuple[float, float]] = []

    async def ask(n: float) -> None:
        began.append((n, clock.now - 1000))

    bound = policy.apply(ask, clock=clock)

    async def main() -> None:
        tasks = [asyncio.ensure_future(bound(n)) for n in (20, 20, 15, 5)]
        await clock.async_sleep(2)
        tasks[1].cancel()
        await clock.async_sleep(3)
        tasks[2].cancel()
        await asyncio.wait(tasks)

    clock.run(main())
    assert began == [(20, 0), (5, 5)]


def test_a_call_that_costs_less_than_estimated_lets_the_waiting_one_go_on_at_once(clock: VirtualClock) -> None:
    service = Service(clock, seconds=1.0)
    ask = Policy(rate_limit=MODEL).apply(service.ask_async, clock=clock)

    async def main() -> None:
        await asyncio.gather(*(ask(tokens=16000) for _ in range(4)))

    clock.run(main())
    assert [moment - 1000 for moment, _ in service.used] == [0, 1, 4, 8]  # without what is given back: 0, 12, 28, 44


def test_a_refusal_that_costs_nothing_gives_the_estimate_back_and_the_request_stays(clock: VirtualClock) -> None:
    class RefusedError(Exception):
        status_code = 429

    def ask(tokens: float) -> None:
        raise errors.pop()

    errors: list[Exception] = [RefusedError(), TimeoutError(), RefusedError(), ValueError()]
    bound = Policy(rate_limit=MODEL).apply(ask, clock=clock)
    for _ in range(4):
        with pytest.raises(Exception):  # noqa: PT011
            bound(tokens=4000)
    assert free_of(bound, "requests") == 96
    assert free_of(bound) == 20000 - 8000


def test_refund_on_says_which_failures_cost_nothing(clock: VirtualClock) -> None:
    def ask(tokens: float) -> None:
        raise errors.pop()

    errors: list[Exception] = [KeyError(), ConnectionError()]
    policy = Policy(rate_limit={"limits": MODEL, "refund_on": ["KeyError"]})
    bound = policy.apply(ask, clock=clock)
    for _ in range(2):
        with pytest.raises((KeyError, ConnectionError)):
            bound(tokens=4000)
    assert free_of(bound) == 16000


def test_a_call_that_ran_out_of_time_before_it_began_used_nothing(clock: VirtualClock) -> None:
    policy = Policy(
        rate_limit=[{"rate": 10, "burst": 5}, {"rate": 1, "burst": 20, "cost": "n"}],
        timeout={"total": 3},
    )
    bound = policy.apply(lambda n: None, clock=clock)
    bound(20)
    with pytest.raises(CallTimeoutError, match="permit is 5s away, and the total timeout leaves 3s"):
        bound(5)
    assert free_of(bound, "n") == 0


def test_settle_says_what_a_call_has_cost(clock: VirtualClock) -> None:
    def ask(tokens: float) -> Any:
        assert opero.settle(1000)
        during.append(free_of(bound))
        assert opero.settle({"tokens": 2000})
        return SimpleNamespace(usage={"total_tokens": 3})  # what the function itself says has precedence

    during: list[float] = []
    bound = Policy(rate_limit=MODEL).apply(ask, clock=clock)
    bound(tokens=4000)
    assert during == [19000]
    assert free_of(bound) == 18000
    assert not opero.settle(5)


def test_settle_works_for_a_limit_whose_cost_is_an_argument_without_more(clock: VirtualClock) -> None:
    async def ask(tokens: float) -> None:
        await asyncio.sleep(0)
        opero.settle(100)

    bound = Policy(rate_limit=[5, {"rate": 10, "burst": 1000, "cost": "tokens"}]).apply(ask, clock=clock)
    clock.run(bound(900))
    assert free_of(bound) == 900


@pytest.mark.parametrize(
    ("actual", "told"),
    [
        (-1, "settle: the cost of a call is -1; it must be a number from 0 to 1e18"),
        ("5", "of type str"),
        (float("nan"), "is nan"),
        (True, "True"),
        ({"token": 5}, "no limit 'token' whose cost is an estimate; did you mean 'tokens'"),
        ({"requests": 5}, "no limit 'requests' whose cost is an estimate"),
    ],
)
def test_settle_refuses_what_is_no_cost(clock: VirtualClock, actual: Any, told: str) -> None:
    bound = Policy(rate_limit=MODEL).apply(lambda tokens: opero.settle(actual), clock=clock)
    with pytest.raises(ValueError, match=told):
        bound(tokens=500)
    assert free_of(bound) == 19500


def test_settle_asks_for_names_where_several_limits_have_estimated_costs(clock: VirtualClock) -> None:
    def ask(input_tokens: float, output_tokens: float) -> None:
        with pytest.raises(ValueError, match="several limits have an estimated cost; use a mapping with input_tokens"):
            opero.settle(5)
        opero.settle({"input_tokens": 5, "output_tokens": 50})

    limits = [{"rate": 10, "burst": 100, "cost": name} for name in ("input_tokens", "output_tokens")]
    bound = Policy(rate_limit=limits).apply(ask, clock=clock)
    bound(10, 90)
    assert (free_of(bound, "input_tokens"), free_of(bound, "output_tokens")) == (95, 50)


def test_an_overdraft_is_paid_by_those_who_come_after(clock: VirtualClock) -> None:
    bound = Policy(rate_limit=[{"rate": 10, "burst": 20, "cost": "n", "cost_from_result": "0"}]).apply(
        lambda n: [120] if n == 20 else [n], clock=clock
    )
    bound(20)
    assert free_of(bound, "n") == -100
    bound(5)
    assert clock.now == pytest.approx(1010.5)


@pytest.mark.parametrize("result", [None, {}, {"usage": None}, {"usage": {"total_tokens": "many"}}, 5])
def test_a_result_without_a_cost_leaves_the_estimate_with_one_warning(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, result: Any
) -> None:
    bound = Policy(rate_limit=MODEL).apply(lambda tokens: result, clock=clock)
    with caplog.at_level(logging.WARNING, "opero"):
        bound(tokens=400)
        bound(tokens=600)
    assert free_of(bound) == 19000
    [record] = caplog.records
    told = (
        f"cost_from_result of tokens finds no number in a result of type {type(result).__name__}; the estimate stands"
    )
    assert told in record.message


def test_a_function_of_the_result_says_the_cost_and_may_fail(clock: VirtualClock) -> None:
    limit = {"rate": 10, "burst": 100, "cost": "n", "cost_from_result": lambda result: result["cost"]}
    bound = Policy(rate_limit=[limit]).apply(lambda n: {"cost": 5} if n == 10 else {}, clock=clock)
    bound(10)
    assert free_of(bound, "n") == 95
    bound(20)
    assert free_of(bound, "n") == 75


def test_a_single_limit_may_have_an_estimated_cost(clock: VirtualClock) -> None:
    policy = RateLimitPolicy(rate=10, burst=100, cost=50, cost_from_result="size")
    bound = policy.apply(lambda: {"size": 20}, clock=clock)
    bound()
    assert free_of(bound, "requests") == 80


def test_a_stream_settles_when_it_ends(clock: VirtualClock) -> None:
    def stream(tokens: float) -> Iterator[Any]:
        yield {"text": "a"}
        yield {"text": "b"}
        opero.settle(300)
        yield {"text": "c"}

    bound = Policy(rate_limit=MODEL).apply(stream, clock=clock)
    items = bound(tokens=1000)
    assert next(items) == {"text": "a"}
    assert free_of(bound) == 19000
    assert len(list(items)) == 2
    assert free_of(bound) == 19700


@pytest.mark.parametrize("is_async", [False, True])
def test_the_last_item_of_a_stream_that_has_a_cost_says_it(clock: VirtualClock, is_async: bool) -> None:
    items = [{"usage": None}, {"usage": {"total_tokens": 1}}, {"usage": {"total_tokens": 200}}, {"usage": None}]

    def stream(tokens: float) -> Iterator[Any]:
        yield from items

    async def stream_async(tokens: float) -> AsyncIterator[Any]:
        for item in items:
            yield item

    bound: Any = Policy(rate_limit=MODEL).apply(stream_async if is_async else stream, clock=clock)

    async def main() -> None:
        assert [item async for item in bound(tokens=1000)] == items

    if is_async:
        clock.run(main())
    else:
        assert list(bound(tokens=1000)) == items
    assert free_of(bound) == 19800


def test_a_stream_that_is_left_keeps_its_estimate(clock: VirtualClock) -> None:
    def stream(tokens: float) -> Iterator[Any]:
        yield 1
        yield 2

    bound = Policy(rate_limit=MODEL).apply(stream, clock=clock)
    items: Any = bound(tokens=1000)
    next(items)
    items.close()
    assert free_of(bound) == 19000


def test_an_attempt_that_fails_and_the_next_one_settle_each_for_itself(clock: VirtualClock) -> None:
    def ask(tokens: float) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError
        return SimpleNamespace(usage={"total_tokens": 100})

    tries: list[int] = []
    bound = Policy(rate_limit=MODEL, retry=2).apply(ask, clock=clock)
    bound(tokens=1000)
    assert free_of(bound) == pytest.approx(20000 - 100 - 1000 + 1000 * (clock.now - 1000), abs=1)


def test_in_shadow_nothing_waits_and_it_is_told(clock: VirtualClock) -> None:
    policy = Policy(rate_limit={"limits": [2, {"rate": 10, "cost": "n"}], "shadow": True, "max_wait": 1})
    bound = policy.apply(lambda n: clock.now, clock=clock)
    assert [bound(5), bound(5), bound(100), bound(1)] == [1000] * 4
    assert bound.stats.as_dict()["shadow"]["rejected_by"] == {"rate_limit": 1}
    assert bound.stats.rejections == 0


def test_async_costs_are_awaited(clock: VirtualClock) -> None:
    async def cost(n: float) -> float:
        await asyncio.sleep(0)
        return n

    async def ask(n: float) -> float:
        return clock.now

    bound = Policy(rate_limit=[{"rate": 100}, {"rate": 10, "cost": cost}]).apply(ask, clock=clock)

    async def main() -> list[float]:
        return [await bound(20), await bound(20)]

    assert clock.run(main()) == [1000, 1002]


def test_ctrl_c_gives_back_what_a_call_holds_that_has_not_begun(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(rate_limit=[{"rate": 10, "burst": 5}, {"rate": 1, "burst": 20, "cost": "n"}])
    bound = policy.apply(lambda n: None, clock=clock)
    bound(15)

    def interrupted(self: object, event: object, seconds: float) -> bool:
        raise KeyboardInterrupt

    limiter = limits_of(bound)
    monkeypatch.setattr(VirtualClock, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bound(10)
    assert free_of(bound, "n") == 5
    assert free_of(bound, "requests") == 4
    assert not limiter.turns


def test_a_forked_child_begins_without_the_calls_that_wait_in_its_parent(clock: VirtualClock) -> None:

    async def ask(n: float) -> None:
        await clock.async_sleep(0)

    bound = Policy(rate_limit=[{"rate": 1, "burst": 20, "cost": "n"}]).apply(ask, clock=clock)

    async def main() -> None:
        tasks = [asyncio.ensure_future(bound(15)) for _ in range(3)]
        await clock.async_sleep(1)
        limiter = limits_of(bound)
        assert (len(limiter.turns), free_of(bound, "n")) == (2, -9)
        limiter.after_fork()  # as in a child, whose tasks of the parent never go on
        assert (len(limiter.turns), free_of(bound, "n")) == (0, 6)
        for task in tasks:
            task.cancel()

    clock.run(main())
