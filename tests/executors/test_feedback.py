"""What a service says of its quota: all callers of a rate limit wait, and come back gradually."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import pytest

from opero import (
    AllFailedError,
    CallTimeoutError,
    Policy,
    RateLimitExceededError,
    RateLimitPolicy,
    Registry,
)
from opero.testing import VirtualClock, virtual_clock


class Response:
    """A response as the HTTP clients have it."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.status_code = status
        self.headers = headers or {}


class HTTPError(Exception):
    """An exception as the HTTP clients have it."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.response = Response(status, headers)


class Service:
    """Answers as told, in order, and then with a plain success.

    Attributes:
        times: when it was asked, in seconds from the beginning.
    """

    def __init__(self, clock: VirtualClock, *answers: Any) -> None:
        self.clock = clock
        self.began = clock.monotonic()
        self.answers = list(answers)
        self.times: list[float] = []

    def __call__(self) -> Any:
        self.times.append(round(self.clock.monotonic() - self.began, 6))
        answer = self.answers.pop(0) if self.answers else Response()
        if isinstance(answer, Exception):
            raise answer
        return answer


def slow_down(seconds: object = 10, name: str = "Retry-After") -> HTTPError:
    return HTTPError(429, {name: str(seconds)})


def limiter(bound: Any) -> Any:
    return bound.binding.pipeline.executors["rate_limit"].limiter


def passes(function: Any) -> None:
    with pytest.raises(HTTPError):
        function()


# What is heeded


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (slow_down(10), 10),
        (slow_down("10"), 10),
        (slow_down(1500, "retry-after-ms"), 1.5),
        (HTTPError(503, {"Retry-After": "7"}), 7),
        (HTTPError(429, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "20"}), 20),
        (HTTPError(429, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2.5s"}), 62.5),
        (Response(429, {"retry-after": "10"}), 10),
        (Response(200, {"RateLimit": '"default";r=0;t=30'}), 30),
        (Response(200, {"RateLimit-Remaining": "0", "RateLimit-Reset": "12"}), 12),
        ({"ResponseMetadata": {"HTTPStatusCode": 429, "HTTPHeaders": {"retry-after": "4"}}}, 4),
        (slow_down(1e9), 300),  # max_pause
    ],
)
def test_what_a_service_asks_of_one_caller_holds_for_the_next(bind: Any, answer: Any, seconds: float) -> None:
    service = Service(bind.clock, answer)
    call = bind(Policy(rate_limit="100/s"), service)
    passing(call)
    call()
    assert service.times == [0, seconds]


def test_a_date_is_a_time_as_well(bind: Any) -> None:
    service = Service(bind.clock, slow_down(formatdate(bind.clock.time() + 10, usegmt=True)))
    call = bind(Policy(rate_limit="100/s"), service)
    passes(call)
    call()
    assert service.times[1] == pytest.approx(10, abs=1)


@pytest.mark.parametrize(
    "answer",
    [
        HTTPError(429),
        HTTPError(404, {"Retry-After": "10"}),
        slow_down(-5),
        slow_down("soon"),
        slow_down("nan"),
        Response(200, {"Retry-After": "10"}),
        Response(200, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "-5"}),
        {"headers": {"Retry-After": "10"}, "status_code": 429},
        ValueError("no"),
    ],
)
def test_other_outcomes_pause_nothing(bind: Any, answer: Any) -> None:
    service = Service(bind.clock, answer)
    call = bind(Policy(rate_limit="100/s"), service)
    with suppress(Exception):
        call()
    call()
    assert service.times == [0, 0.01]


def test_without_feedback_only_the_call_itself_waits(bind: Any) -> None:
    service = Service(bind.clock, slow_down())
    call = bind(Policy(rate_limit={"rate": "100/s", "feedback": False}), service)
    passes(call)
    call()
    assert service.times == [0, 0.01]


def test_a_quota_that_is_nearly_used_up_lasts_until_it_is_renewed(bind: Any) -> None:
    left = [
        Response(200, {"RateLimit": f'"q";r={5 - n};t={10 - 2 * n}', "RateLimit-Policy": '"q";q=100;w=60'})
        for n in range(5)
    ]
    service = Service(bind.clock, *left)
    call = bind(Policy(rate_limit="100/s"), service)
    for _ in range(6):
        call()
    assert service.times == pytest.approx([0, 2, 4, 6, 8, 10])


# Everybody


def test_all_functions_of_a_profile_wait() -> None:
    with virtual_clock() as clock:
        service = Service(clock, slow_down())
        registry = Registry({"api": Policy(rate_limit="100/s")})
        first, second = registry.bind(service, "api"), registry.bind(service.__call__, "api")
        passes(first)
        second()
    assert service.times == [0, 10]


def test_threads_that_wait_for_permits_already_wait_longer() -> None:
    clock = VirtualClock()
    service = Service(clock, Response(), slow_down())
    bound = Policy(rate_limit="1/s").apply(service, clock=clock)
    threads = [threading.Thread(target=lambda: passing(bound)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert service.times[:2] == [0, 1]
    assert service.times[2] == 11
    assert len(service.times) == 4


def passing(bound: Any) -> None:
    with suppress(HTTPError):
        bound()


def test_tasks_come_back_gradually() -> None:
    clock = VirtualClock()
    service = Service(clock, slow_down(60))

    async def ask() -> Any:
        return service()

    bound = Policy(rate_limit={"rate": "100/s", "burst": 50}).apply(ask, clock=clock)

    async def many() -> None:
        with pytest.raises(HTTPError):
            await bound()
        await asyncio.gather(*[bound() for _ in range(600)])

    clock.run(many())
    later = [each - 60 for each in service.times[1:]]
    assert later[0] == 0
    counts = [sum(second <= each < second + 1 for each in later) for second in range(7)]
    assert 10 <= counts[0] <= 20
    assert counts == sorted(counts[:6]) + counts[6:]
    assert 95 <= counts[5] <= 101
    assert all(b - a > 0.009 for a, b in pairwise(later))


# Who cannot wait


def test_a_call_that_may_not_wait_so_long_is_rejected_and_says_why(bind: Any) -> None:
    service = Service(bind.clock, slow_down(30))
    call = bind(Policy(rate_limit={"rate": "100/s", "max_wait": 5}), service)
    passes(call)
    with pytest.raises(RateLimitExceededError, match=r"the service has asked for a pause, which lasts 30s") as caught:
        call()
    assert caught.value.retry_in == pytest.approx(30)
    assert service.times == [0]
    assert bind.slept == []


def test_a_call_that_ends_before_is_not_begun(bind: Any) -> None:
    service = Service(bind.clock, slow_down(30))
    call = bind(Policy(rate_limit={"rate": "100/s"}, timeout={"total": 5}), service)
    passes(call)
    with pytest.raises(CallTimeoutError, match="the service has asked for a pause"):
        call()
    assert service.times == [0]


def test_a_pause_is_bounded(bind: Any) -> None:
    service = Service(bind.clock, slow_down(3600), slow_down(3600))
    call = bind(Policy(rate_limit={"rate": "100/s", "max_pause": "1m"}), service)
    passes(call)
    passes(call)
    call()
    assert service.times == [0, 60, 120]


# Together with other policies


def test_a_retry_waits_once(bind: Any) -> None:
    service = Service(bind.clock, slow_down(10))
    call = bind(Policy(rate_limit="100/s", retry={"retries": 2}), service)
    call()
    assert service.times == pytest.approx([0, 10], abs=0.11)
    call()
    assert service.times[2] - service.times[1] < 0.2


def test_a_retry_that_may_not_wait_fails_and_others_still_wait(bind: Any) -> None:
    service = Service(bind.clock, slow_down(60))
    call = bind(Policy(rate_limit="100/s", retry={"retries": 2, "max_delay": 30}), service)
    with pytest.raises((HTTPError, AllFailedError)):
        call()
    call()
    assert service.times == [0, 60]


def test_values_of_a_fallback_argument_have_a_quota_each(bind: Any) -> None:
    asked: list[tuple[str, float]] = []
    began = bind.clock.monotonic()

    def ask(key: str = ["first", "second"]) -> str:  # type: ignore[assignment]
        asked.append((key, round(bind.clock.monotonic() - began, 6)))
        if key == "first":
            raise slow_down(60)
        return key

    call = bind(Policy(rate_limit="100/s", retry={"retries": 1}, fallback={"arg": "key"}), ask)
    assert call() == "second"
    assert asked == [("first", 0), ("second", 0.01)]


def test_a_limit_in_shadow_pauses_nothing(bind: Any, heard: list[Any]) -> None:
    service = Service(bind.clock, slow_down(10))
    call = bind(Policy(rate_limit={"rate": "100/s", "shadow": True}), service)
    passes(call)
    call()
    assert service.times == [0, 0]
    assert [each.would for each in heard if each.name == "shadowed"] == ["delay", "delay"]
    assert not any(each.name == "rate_limit_paused" for each in heard)


# Nothing but what the service says


def test_a_rate_may_be_the_services_own(bind: Any) -> None:
    service = Service(bind.clock, *[Response()] * 100, slow_down(10))
    call = bind(Policy(rate_limit="service"), service)
    for _ in range(100):
        call()
    assert service.times[-1] < 0.001
    passes(call)
    for _ in range(100):
        call()
    assert service.times[101] == pytest.approx(10, abs=0.001)
    later = [each - 10 for each in service.times[101:]]
    assert sum(each < 1 for each in later) < 10
    assert later[-1] < 3


# Seen from outside


def test_a_pause_is_told_once(heard: list[Any]) -> None:
    clock = VirtualClock()
    service = Service(clock, *[slow_down(10)] * 5)

    async def ask() -> Any:
        await clock.async_sleep(0.1)
        return service()

    bound = Policy(rate_limit={"rate": "100/s", "burst": 5}).apply(ask, clock=clock)

    async def many() -> None:
        await asyncio.gather(*[bound() for _ in range(5)], return_exceptions=True)

    clock.run(many())
    (paused,) = [each for each in heard if each.name == "rate_limit_paused"]
    assert (paused.seconds, paused.reason, paused.limit) == (10, "HTTP 429", bound.binding.name)
    assert limiter(bound).paused_for() == pytest.approx(10)
    clock.sleep(11)
    assert limiter(bound).paused_for() == 0


def test_saved_permits_are_not_used_when_a_pause_ends(bind: Any) -> None:
    service = Service(bind.clock, slow_down(10))
    call = bind(Policy(rate_limit={"rate": "10/s", "burst": 10}), service)
    passes(call)
    for _ in range(5):
        call()
    assert service.times[1] == 10
    assert service.times[-1] > 11


@pytest.mark.parametrize("rate", ["adaptive", "100/s"])
def test_a_changed_policy_keeps_the_pause(rate: str) -> None:
    clock = VirtualClock()
    service = Service(clock, slow_down(10))
    bound = Policy(rate_limit="50/s").apply(service, clock=clock)
    passes(bound)
    bound.binding.swap(Policy(rate_limit=RateLimitPolicy(rate=rate)))
    bound()
    assert service.times == [0, 10]


def test_a_profile_may_say_which_statuses_are_throttled(bind: Any) -> None:
    service = Service(bind.clock, Response(420, {"Retry-After": "10"}))
    call = bind(Policy(rate_limit="100/s", failures={"throttled": [420]}), service)
    call()
    call()
    assert service.times == [0, 10]


def test_what_an_inner_bound_function_gives_up_on_is_heeded(bind: Any) -> None:
    service = Service(bind.clock, slow_down(10))
    inner = Policy(retry={"retries": 1, "max_delay": 1}).apply(service, clock=bind.clock)
    call = bind(Policy(rate_limit="100/s", retry={"retries": 0}), inner)
    passing(call)
    call()
    assert service.times[1] == 10


# Several limits, and limits by key


def test_a_pause_holds_for_all_limits_of_a_policy() -> None:
    with virtual_clock() as clock:
        service = Service(clock, slow_down(10))
        bound: Any = Policy.model_validate(
            {"rate_limit": [{"rate": "10/s", "burst": 5}, {"rate": "100/s", "burst": 100, "name": "tokens", "cost": 7}]}
        ).apply(service)
        passes(bound)
        bound()
        bound()
        assert service.times[0] == 0
        assert service.times[1] == pytest.approx(10, abs=0.01)
        assert service.times[2] - service.times[1] == pytest.approx(0.1, abs=0.02)  # no burst after the pause


def test_a_pause_holds_for_a_call_that_had_its_permits_already() -> None:
    times: list[float] = []

    async def service() -> None:
        times.append(clock.monotonic() - began)
        if len(times) == 1:
            await asyncio.sleep(0.05)
            raise slow_down(10)

    async def use() -> None:
        await asyncio.gather(*(bound() for _ in range(3)), return_exceptions=True)

    with virtual_clock() as clock:
        began = clock.monotonic()
        bound: Any = Policy.model_validate({"rate_limit": [{"rate": 10}, {"rate": 100, "name": "other"}]}).apply(
            service
        )
        asyncio.run(use())
    assert len(times) == 3
    assert all(each >= 10 for each in times[1:])


def test_a_pause_concerns_only_the_key_of_its_call() -> None:
    with virtual_clock() as clock:
        began = clock.monotonic()
        times: list[tuple[str, float]] = []

        def service(tenant: str) -> None:
            times.append((tenant, clock.monotonic() - began))
            if len(times) == 1:
                raise slow_down(10)

        bound: Any = Policy.model_validate({"rate_limit": {"rate": 1000, "scope": {"by": "tenant"}}}).apply(service)
        with pytest.raises(HTTPError):
            bound("a")
        bound("b")
        bound("a")
    assert times[1] == ("b", pytest.approx(0, abs=0.1))
    assert times[2] == ("a", pytest.approx(10, abs=0.1))


def test_each_key_finds_its_own_rate() -> None:
    with virtual_clock():

        def service(tenant: str) -> None:
            if tenant == "a":
                raise HTTPError(429)

        bound: Any = Policy.model_validate({"rate_limit": {"rate": "adaptive", "scope": {"by": "tenant"}}}).apply(
            service
        )
        for _ in range(20):
            with suppress(HTTPError):
                bound("a")
            bound("b")
        table = bound.binding.pipeline.executors["rate_limit"].limiter
        assert table.of("b").rate() > 2 * table.of("a").rate()


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_calls_that_have_a_permit_and_wait_for_a_slot_wait_longer(kind: str) -> None:
    clock = VirtualClock()
    service = Service(clock, Response(), slow_down(10))
    policy = Policy(rate_limit={"rate": "100/s", "burst": 10}, bulkhead={"max_concurrent": 1, "max_wait": None})

    def ask() -> Any:
        clock.sleep(1)
        return service()

    async def ask_async() -> Any:
        await clock.async_sleep(1)
        return service()

    if kind == "tasks":
        bound_async = policy.apply(ask_async, clock=clock)

        async def many() -> None:
            await asyncio.gather(*[bound_async() for _ in range(5)], return_exceptions=True)

        clock.run(many())
    else:
        bound = policy.apply(ask, clock=clock)
        threads = [threading.Thread(target=passing, args=(bound,)) for _ in range(5)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert service.times[:3] == pytest.approx([1, 2, 13], abs=0.001)
    assert len(service.times) == 5


def test_a_call_without_the_time_for_a_pause_of_several_limits_is_rejected() -> None:
    with virtual_clock() as clock:
        service = Service(clock, slow_down(10))
        limits = [{"rate": "10/s"}, {"rate": "100/s", "name": "other"}]
        bound: Any = Policy.model_validate({"rate_limit": {"limits": limits, "max_wait": 5}}).apply(service)
        passes(bound)
        with pytest.raises(RateLimitExceededError) as caught:
            bound()
        assert caught.value.retry_in == pytest.approx(10, abs=0.01)
    assert len(service.times) == 1


LIMITS = [{"limits": [{"rate": 50}, {"rate": 100, "name": "other"}]}, {"scope": {"by": "key"}}]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_pause_of_whatever_limit_holds_behind_a_bulkhead(limit: dict[str, Any]) -> None:
    clock = VirtualClock()
    service = Service(clock, Response(), slow_down(10))

    async def ask(key: str) -> Any:
        await clock.async_sleep(1)
        return service()

    rate_limit = {"rate": "100/s", "burst": 10, **limit} if "limits" not in limit else limit
    policy = Policy.model_validate({"rate_limit": rate_limit, "bulkhead": {"max_concurrent": 1, "max_wait": None}})
    bound = policy.apply(ask, clock=clock)

    async def many() -> None:
        await asyncio.gather(*[bound("a") for _ in range(5)], return_exceptions=True)

    clock.run(many())
    assert service.times[:3] == pytest.approx([1, 2, 13], abs=0.1)
    assert len(service.times) == 5
