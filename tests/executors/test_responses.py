"""Returned responses whose status is a failure: retried, counted, never cached, and at last returned as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3

from failures.misbehaving_server import http_server
from opero import AllFailedError, CircuitOpenError, FailedResponseError, Policy, opero
from opero.failures import failure_of, kind_of

NOW = {"retries": 2, "min_delay": 0}


class Response:
    """The shape that clients' responses share."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status_code = status
        self.headers = headers
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def __repr__(self) -> str:
        return f"<{self.status_code}>"


OK, MISSING, DOWN = Response(200), Response(404), Response(503)


# Retry


def test_a_failed_response_is_retried(bind: Any, script: Any) -> None:
    function = script(DOWN, DOWN, OK)
    assert bind(Policy(retry=NOW), function)() is OK
    stats = bind.bound.stats
    assert (stats.attempts, stats.retries, stats.recoveries, stats.failures) == (3, 2, 1, 0)


def test_the_last_response_is_returned_as_it_is(bind: Any, script: Any) -> None:
    first, second, last = (Response(503) for _ in range(3))
    for reraise in (False, True):
        assert bind(Policy(retry={**NOW, "reraise": reraise}), script(first, second, last))() is last
        assert (bind.bound.stats.attempts, bind.bound.stats.failures) == (3, 1)


@pytest.mark.parametrize(("status", "attempts"), [(200, 1), (404, 1), (401, 1), (501, 1), (429, 3), (503, 3), (408, 3)])
def test_its_kind_decides_whether_it_is_retried(bind: Any, script: Any, status: int, attempts: int) -> None:
    response = Response(status)
    assert bind(Policy(retry=NOW), script(response))() is response
    assert bind.bound.stats.attempts == attempts
    assert bind.bound.stats.failures == (status >= 400)


def test_retry_on_status_decides_instead(bind: Any, script: Any) -> None:
    policy = Policy(retry={**NOW, "retry_on_status": [404]})
    assert bind(policy, script(MISSING))() is MISSING
    assert bind.bound.stats.attempts == 3
    assert bind(policy, script(DOWN))() is DOWN
    assert bind.bound.stats.attempts == 1


def test_retry_if_result_may_retry_what_its_kind_would_not(bind: Any, script: Any) -> None:
    policy = Policy(retry={**NOW, "retry_if_result": lambda response: response.status_code == 404})
    assert bind(policy, script(MISSING, MISSING, OK))() is OK
    assert bind(policy, script(DOWN, OK))() is OK


def test_retry_after_is_waited_and_never_asked_early(bind: Any, script: Any) -> None:
    busy = Response(503, **{"Retry-After": "7"})
    assert bind(Policy(retry=2), script(busy, OK))() is OK
    assert bind.slept == [7.0]
    assert bind(Policy(retry={"retries": 2, "max_delay": 5}), script(busy, OK))() is busy  # at once
    assert bind.slept == [7.0]


def test_a_total_timeout_that_leaves_no_time_returns_the_last_response(bind: Any, script: Any) -> None:
    policy = Policy(retry={"retries": 5, "min_delay": 2, "jitter": False}, timeout=3)
    last = Response(503)
    assert bind(policy, script(Response(503), last))() is last
    assert bind.bound.stats.attempts == 2


def test_an_exception_after_a_response_is_raised_with_both(bind: Any, script: Any) -> None:
    with pytest.raises(AllFailedError) as raised:
        bind(Policy(retry={**NOW, "retries": 1}), script(DOWN, ConnectionError("reset")))()
    failed, error = raised.value.errors
    assert isinstance(failed, FailedResponseError)
    assert (failed.response, failed.status, str(error)) == (DOWN, 503, "reset")
    assert kind_of(failed) == "transient"
    assert failure_of(failed).reason == "HTTP 503"


def test_a_response_that_another_attempt_follows_is_closed(bind: Any, script: Any) -> None:
    first, second, last = (Response(503) for _ in range(3))
    assert bind(Policy(retry=NOW), script(first, second, last))() is last
    assert [each.is_closed for each in (first, second, last)] == [True, True, False]


def test_a_response_that_cannot_be_closed_does_no_harm(bind: Any, script: Any) -> None:
    class Stubborn(Response):
        def close(self) -> None:
            raise RuntimeError("closed twice")

    assert bind(Policy(retry=NOW), script(Stubborn(503), OK))() is OK


# The other policies


def test_the_circuit_breaker_counts_it_by_kind(bind: Any, script: Any) -> None:
    policy = Policy(circuit_breaker={"consecutive_failures": 2})
    call = bind(policy, script(DOWN))
    assert [call(), call()] == [DOWN, DOWN]
    with pytest.raises(CircuitOpenError, match="FailedResponseError: .* returned a response with the status 503"):
        call()
    call = bind(policy, script(MISSING))
    assert [call() for _ in range(5)] == [MISSING] * 5


def test_it_is_never_cached(bind: Any, script: Any) -> None:
    for cache in (True, {"errors": True}):
        function = script(DOWN, MISSING, OK)
        call = bind(Policy(cache=cache), function)
        assert [call(), call(), call(), call()] == [DOWN, MISSING, OK, OK]
        assert len(function.calls) == 3


def test_a_map_with_a_cache_does_not_keep_it() -> None:
    for mode in ("thread", "process"):
        parallel = {"mode": mode, "workers": 1, "progress": False}
        bound: Any = Policy(cache=True, parallel=parallel).apply(response_to)
        assert [each.status_code for each in bound.map([200, 503, 404])] == [200, 503, 404]
        assert bound.cache_info().size == 1


def response_to(status: int) -> Response:
    return Response(status)


def test_a_map_retries_it_and_returns_the_last_one() -> None:
    for mode in ("thread", "process", "async"):
        parallel = {"mode": mode, "workers": 1, "progress": False}
        for extra in ({}, {"fallback": {"default": None, "on": "denied"}, "cache": True}):
            function = response_to_async if mode == "async" else response_to
            bound: Any = Policy(retry=NOW, parallel=parallel, **extra).apply(function)
            results = bound.map([200, 503, 404])
            if mode == "async":
                results = asyncio.run(results)
            assert [each.status_code for each in results] == [200, 503, 404]
            assert (bound.stats.attempts, bound.stats.failures) == (5, 2)


async def response_to_async(status: int) -> Response:
    return Response(status)


def test_a_fallback_covers_it_by_kind(bind: Any, script: Any) -> None:
    policy = Policy(retry=NOW, fallback={"default": "spare"})
    assert bind(policy, script(DOWN))() == "spare"
    assert bind(policy, script(MISSING))() is MISSING


def test_another_value_is_tried_after_it(bind: Any) -> None:
    def ask(key: str) -> Response:
        return OK if key == "good" else Response(401)

    assert bind(Policy(fallback={"arg": "key"}), ask)(["bad", "good"]) is OK
    answer = bind(Policy(fallback={"arg": "key"}), ask)(["bad", "worse"])
    assert answer.status_code == 401


def test_a_result_that_retry_if_result_rejected_to_the_end_is_not_cached(bind: Any, script: Any) -> None:
    retry = {**NOW, "reraise": True, "retry_if_result": lambda result: result == "pending"}
    function = script("pending", "pending", "pending", "done")
    call = bind(Policy(retry=retry, cache=True), function)
    assert [call(), call(), call()] == ["pending", "done", "done"]
    assert len(function.calls) == 4


def test_a_map_does_not_cache_what_retry_if_result_rejected() -> None:
    retry = {"retries": 0, "retry_if_result": "executors.test_responses:is_odd"}
    for mode in ("thread", "process"):
        parallel = {"mode": mode, "workers": 1, "progress": False}
        bound: Any = Policy(retry=retry, cache=True, parallel=parallel).apply(same)
        assert bound.map([1, 2, 3, 4]) == [1, 2, 3, 4]
        assert bound.cache_info().size == 2


def same(number: int) -> int:
    return number


def is_odd(number: int) -> bool:
    return number % 2 == 1


# What decides what a failure is


@pytest.mark.parametrize("extra", [{}, {"cache": True}, {"circuit_breaker": 1}, {"fallback": {"default": 1}}])
def test_responses_false_leaves_all_results_alone(bind: Any, script: Any, extra: Any) -> None:
    policy = Policy(retry=NOW, failures={"responses": False}, **extra)
    assert bind(policy, script(DOWN))() is DOWN
    assert (bind.bound.stats.attempts, bind.bound.stats.failures) == (1, 0)


def test_a_status_that_the_policy_states_decides(bind: Any, script: Any) -> None:
    policy = Policy(retry=NOW, failures={"transient": [404, 202], "permanent": "5xx"})
    accepted = Response(202)
    for response, attempts in ((MISSING, 3), (accepted, 3), (DOWN, 1), (OK, 1)):
        assert bind(policy, script(response))() is response
        assert bind.bound.stats.attempts == attempts


def test_without_a_policy_that_asks_responses_are_not_looked_at(bind: Any, script: Any) -> None:
    assert bind(Policy(timeout=5, bulkhead=1), script(DOWN))() is DOWN
    assert bind.bound.stats.failures == 0


def test_other_results_are_not_touched(bind: Any, script: Any) -> None:
    class Order:
        status = 500

    for result in (None, 503, {"status": 503}, {"ResponseMetadata": {}}, [DOWN], Order()):
        assert bind(Policy(retry=NOW), script(result))() is result
        assert bind.bound.stats.attempts == 1


def test_a_generator_that_yields_responses_is_left_alone() -> None:
    @opero(retries=2, min_delay=0)
    def pages() -> Iterator[Response]:
        yield DOWN

    assert list(pages()) == [DOWN]
    assert pages.stats.failures == 0


# Real clients and a real server


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    with http_server() as url:
        yield url


def test_real_clients_return_the_response_after_all_attempts(http: str) -> None:
    with requests.Session() as session, httpx.Client(trust_env=False) as client, urllib3.PoolManager() as pool:
        for get in (
            session.get,
            client.get,
            lambda url: session.get(url, stream=True),
            lambda url: pool.request("GET", url, retries=False),
            lambda url: pool.request("GET", url, retries=False, preload_content=False),
        ):
            bound: Any = Policy(retry=NOW).apply(lambda url, get=get: get(url))
            for status, attempts in ((200, 1), (404, 1), (500, 3)):
                before = bound.stats.attempts
                response = bound(f"{http}/{status}")
                assert getattr(response, "status_code", getattr(response, "status", 0)) == status
                assert bound.stats.attempts - before == attempts


def test_real_async_clients_return_the_response_after_all_attempts(http: str) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session, httpx.AsyncClient(trust_env=False) as client:

            @opero(**NOW)
            async def by_aiohttp(url: str) -> Any:
                return await session.get(url)

            @opero(**NOW)
            async def by_httpx(url: str) -> Any:
                return await client.send(client.build_request("GET", url), stream=True)

            for bound in (by_aiohttp, by_httpx):
                response = await bound(f"{http}/500")
                assert getattr(response, "status_code", getattr(response, "status", 0)) == 500
                assert bound.stats.attempts == 3
                await response.read() if bound is by_aiohttp else await response.aread()

    asyncio.run(main())
