"""Calls that must not be made again where the service may have received them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from opero import AllFailedError, CircuitOpenError, ConfigError, Policy, Registry, opero, opmap
from opero.executors.unsent import is_unsent

QUICK: dict[str, Any] = {"retries": 3, "min_delay": 0, "retry_on": [Exception]}


class Service:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def pay(self, amount: int = 1) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return amount

    async def pay_async(self, amount: int = 1) -> int:
        return self.pay(amount)


def call(service: Service, is_async: bool, **retry: Any) -> Any:
    policy = Policy.model_validate({"retry": {**QUICK, "idempotent": False, **retry}})
    if is_async:
        return asyncio.run(policy.apply(service.pay_async)(5))
    return policy.apply(service.pay)(5)


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), ValueError("x"), ConnectionError()])
def test_a_call_that_the_service_may_have_received_is_made_once(error: Exception, is_async: bool) -> None:
    service = Service(error, error)
    with pytest.raises(type(error)):
        call(service, is_async)
    assert service.calls == 1


@both
def test_a_call_without_a_connection_is_made_again(is_async: bool) -> None:
    refused = OSError("no connection")
    refused.__cause__ = ConnectionRefusedError()
    service = Service(ConnectionRefusedError(), refused, TimeoutError())
    with pytest.raises(TimeoutError):
        call(service, is_async)
    assert service.calls == 3


@both
def test_a_rejection_by_opero_that_retry_on_names_is_retried(is_async: bool) -> None:
    service = Service(CircuitOpenError("open", retry_in=0))
    assert call(service, is_async, retry_on=[CircuitOpenError]) == 5
    assert service.calls == 2


def test_an_attempt_that_has_timed_out_is_not_repeated() -> None:
    async def slow() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(10)

    calls = 0
    bound = opero(retries=3, min_delay=0, attempt_timeout=0.01, idempotent=False)(slow)
    with pytest.raises(TimeoutError):
        asyncio.run(bound())
    assert calls == 1


def test_a_rejected_result_is_not_repeated() -> None:
    service = Service()
    bound: Any = opero(retries=3, min_delay=0, retry_if_result=lambda result: True, idempotent=False)(service.pay)
    bound(5)
    assert service.calls == 1


def test_a_profile_does_not_change_what_code_says() -> None:
    service = Service(TimeoutError())
    registry = Registry({"api": Policy.model_validate({"retry": QUICK})})
    with pytest.raises(TimeoutError):
        registry.bind(service.pay, "api", idempotent=False)()
    assert service.calls == 1


def test_items_of_a_map_are_made_once() -> None:
    calls: list[int] = []

    def pay(number: int) -> int:
        calls.append(number)
        raise ConnectionResetError

    assert (
        opmap(retries=3, min_delay=0, mode="thread", on_error="skip", progress=False, idempotent=False)(pay)(range(9))
        == []
    )
    assert sorted(calls) == list(range(9))


@pytest.mark.parametrize(
    "inner", [{"retries": 3}, {"retries": 0}, {"retries": 3, "retry_on": KeyError}, {"timeout": 0.05}]
)
@both
def test_a_bound_function_around_it_does_not_repeat_it(inner: dict[str, Any], is_async: bool) -> None:
    service = Service(TimeoutError(), TimeoutError())

    def pay() -> int:
        if "timeout" in inner:
            service.calls += 1
            time.sleep(5)
        return service.pay()

    async def pay_async() -> int:
        if "timeout" in inner:
            service.calls += 1
            await asyncio.sleep(5)
        return service.pay()

    policy = Policy.from_options(min_delay=0, idempotent=False, **inner)
    once, once_async = policy.apply(pay), policy.apply(pay_async)

    @opero(retries=3, min_delay=0)
    def order() -> int:
        return once()

    @opero(retries=3, min_delay=0)
    async def order_async() -> int:
        return await once_async()

    with pytest.raises(TimeoutError):
        asyncio.run(order_async()) if is_async else order()
    assert service.calls == 1


def test_what_it_has_not_sent_is_repeated_by_a_bound_function_around_it() -> None:
    service = Service(ConnectionRefusedError(), ConnectionRefusedError())
    inner = opero(retries=0, idempotent=False)(service.pay)

    @opero(retries=3, min_delay=0)
    def order() -> int:
        return inner(5)

    assert order() == 5


def test_a_failure_of_several_attempts_is_not_unsent() -> None:
    error = AllFailedError("x", (TimeoutError(), ConnectionRefusedError()))
    error.__cause__ = ConnectionRefusedError()
    assert not is_unsent(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hedge": "1s"}, "hedge makes two attempts at once, and with idempotent=False"),
        ({"arg_fallback": "amount"}, r"arg_fallback \(amount\) makes further attempts with other values"),
    ],
)
def test_what_would_make_another_attempt_is_refused_when_bound(options: Any, said: str) -> None:
    async def pay(amount: int) -> None: ...

    with pytest.raises(ConfigError, match=said):
        Policy.from_options(idempotent=False, **options).apply(pay)
