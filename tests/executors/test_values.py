"""What is remembered of the values of a fallback argument, from one call to the next."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from pydantic import SecretStr

import opero
from opero import AllFailedError, CallTimeoutError, Policy, RateLimitExceededError, Registry
from opero.testing import VirtualClock

KEYS = ["a", "b", "c"]
NO_WAIT = {"jitter": False, "min_delay": 1, "backoff_factor": 1}


class RefusedError(Exception):
    """As the error of an HTTP client."""

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class Service:
    """Records the keys that it is asked with, and refuses some of them.

    Attributes:
        refuses: key → the error that it gets.
    """

    def __init__(self, **refuses: Exception) -> None:
        self.refuses = refuses
        self.asked: list[str] = []

    def __call__(self, key: str) -> str:
        self.asked.append(key)
        if key in self.refuses:
            raise self.refuses[key]
        return key

    def since(self) -> list[str]:
        """The keys asked since this was last called."""
        asked, self.asked = self.asked, []
        return asked


def bound(bind: Any, service: Service, retries: int = 0, **fallback: Any) -> Any:
    def ask(key: str) -> str:
        return service(key)

    return bind(Policy(retry={"retries": retries, **NO_WAIT}, fallback={"arg": "key", **fallback}), ask)


DENIED = RefusedError(401)


def test_a_denied_value_is_asked_last_until_it_has_cooled_down(bind: Any) -> None:
    service = Service(a=DENIED)
    call = bound(bind, service)
    assert [call(KEYS) for _ in range(3)] == ["b", "b", "b"]
    assert service.since() == ["a", "b", "b", "b"]
    service.refuses |= {"b": RefusedError(500), "c": RefusedError(500)}
    with pytest.raises(AllFailedError):
        call(KEYS)
    assert service.since() == ["b", "c", "a"]
    service.refuses.clear()
    bind.clock.advance(299)
    assert call(KEYS) == "b"
    bind.clock.advance(2)
    assert [call(KEYS), call(KEYS)] == ["a", "a"]


@pytest.mark.parametrize("remember", [False, 0, "0s"])
def test_nothing_is_remembered_if_that_is_switched_off(bind: Any, remember: Any) -> None:
    service = Service(a=DENIED)
    call = bound(bind, service, remember=remember)
    assert [call(KEYS) for _ in range(2)] == ["b", "b"]
    assert service.since() == ["a", "b", "a", "b"]


def test_remember_says_for_how_long(bind: Any) -> None:
    service = Service(a=DENIED)
    call = bound(bind, service, remember="10s")
    assert call(KEYS) == "b"
    bind.clock.advance(9)
    assert call(KEYS) == "b"
    bind.clock.advance(1)
    assert call(KEYS) == "b"
    assert service.since() == ["a", "b", "b", "a", "b"]


def test_a_throttled_value_is_not_asked_before_its_time(bind: Any) -> None:
    service = Service(a=RefusedError(429, 20), b=RefusedError(500))
    call = bound(bind, service)
    assert call(KEYS) == "c"
    assert service.since() == KEYS
    service.refuses.clear()
    assert call(KEYS) == "c"  # it worked when the others had failed
    bind.clock.advance(20)
    service.refuses["c"] = RefusedError(500)
    assert call(KEYS) == "a"
    assert service.since() == ["c", "c", "a"]


def test_a_throttled_value_without_a_time_is_left_alone_for_a_second(bind: Any) -> None:
    service = Service(a=RefusedError(429))
    call = bound(bind, service)
    assert [call(KEYS), call(KEYS)] == ["b", "b"]
    service.refuses.clear()
    bind.clock.advance(0.9)
    assert call(KEYS) == "b"
    bind.clock.advance(0.1)
    assert call(KEYS) == "a"


def test_a_call_begins_with_the_value_that_last_worked(bind: Any) -> None:
    service = Service(a=RefusedError(500), b=ValueError())
    call = bound(bind, service)
    assert [call(KEYS), call(KEYS)] == ["c", "c"]
    assert service.since() == [*KEYS, "c"]
    service.refuses = {"c": RefusedError(500)}
    assert [call(KEYS), call(KEYS)] == ["a", "a"]
    bind.clock.advance(300)
    assert service.since() == ["c", "a", "a"]
    service.refuses = {}
    assert call(KEYS) == "a"


def test_if_all_are_throttled_a_call_waits_exactly_for_the_first(bind: Any) -> None:
    service = Service(a=RefusedError(429, 5), b=RefusedError(429, 3))
    call = bound(bind, service)
    with pytest.raises(AllFailedError) as caught:
        call(["a", "b"])
    assert caught.value.retry_in == 3
    service.since()
    service.refuses.clear()
    bind.clock.advance(1)
    assert call(["a", "b"]) == "b"
    assert bind.slept == [2]
    assert (bind.bound.stats.waits, bind.bound.stats.waited) == (1, 2)
    assert service.since() == ["b"]


def test_a_call_that_may_not_wait_so_long_fails_at_once(bind: Any) -> None:
    service = Service(a=RefusedError(429, 50), b=RefusedError(429, 40))
    call = bound(bind, service)
    with pytest.raises(AllFailedError):
        call(["a", "b"])
    service.since()
    with pytest.raises(
        RateLimitExceededError, match="all values of key are throttled.*longer than max_delay"
    ) as caught:
        call(["a", "b"])
    assert (caught.value.retry_in, bind.slept, service.since()) == (40, [], [])
    assert bind.bound.stats.rejections == 1


def test_a_call_whose_deadline_is_nearer_fails_at_once(bind: Any) -> None:
    service = Service(a=RefusedError(429, 5), b=RefusedError(429, 4))

    def ask(key: str) -> str:
        return service(key)

    call = bind(Policy(retry=1, timeout=3, fallback={"arg": "key"}), ask)
    for asked in (["a", "b"], []):
        with pytest.raises(CallTimeoutError) as caught:
            call(["a", "b"])
        assert (caught.value.retry_in, caught.value.scope, bind.slept, service.since()) == (4, "total", [], asked)


def test_denied_values_are_asked_if_the_call_may_not_wait_for_the_throttled_one(bind: Any) -> None:
    service = Service(a=DENIED, b=RefusedError(429, 40))
    call = bound(bind, service)
    assert call(KEYS) == "c"
    service.since()
    assert call(["a", "b", "c"]) == "c"
    service.refuses.clear()
    service.since()
    assert call(["a", "b"]) == "a"
    assert bind.slept == []


def test_a_throttled_value_that_comes_back_in_time_is_waited_for_rather_than_a_denied_one_asked(bind: Any) -> None:
    service = Service(a=DENIED, b=RefusedError(429, 4))
    call = bound(bind, service)
    assert call(KEYS) == "c"
    service.since()
    service.refuses = {"b": DENIED}
    assert call(["a", "b"]) == "a"
    assert (service.since(), bind.slept) == (["b", "a"], [4])


def test_if_all_are_denied_the_request_is_at_fault(bind: Any, caplog: Any) -> None:
    service = Service(a=DENIED, b=DENIED, c=DENIED)
    call = bound(bind, service)
    for _ in range(2):
        with pytest.raises(AllFailedError):
            call(KEYS)
    assert (service.since(), caplog.messages, bind.slept) == (KEYS * 2, [], [])


def test_a_throttled_value_is_tried_in_a_later_round_of_a_call_that_goes_on(bind: Any) -> None:
    service = Service(a=RefusedError(429, 5))
    call = bound(bind, service, retries=3)
    assert call(["a", "b"]) == "b"
    service.refuses = {"b": RefusedError(500)}
    bind.clock.advance(3)
    service.since()
    assert call(["a", "b"]) == "a"
    assert (service.since(), bind.slept) == (["b", "b", "b", "a"], [1, 1])


def test_setting_aside_and_restoring_are_logged_once_without_the_value(bind: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO, logger="opero")
    secret = "sk-very-secret"
    service = Service(**{secret: DENIED})
    call = bound(bind, service)
    events: list[Any] = []
    stop = [opero.on(name, events.append) for name in ("value_set_aside", "value_restored")]
    for _ in range(3):
        assert call([secret, "b"]) == "b"
        bind.clock.advance(200)
    service.refuses.clear()
    bind.clock.advance(300)
    assert call([secret, "b"]) == secret
    assert call([secret, "b"]) == secret
    for each in stop:
        each()
    records = [record for record in caplog.records if record.event.startswith("value_")]
    assert [record.levelno for record in records] == [logging.WARNING, logging.INFO]
    first, second = (record.getMessage() for record in records)
    assert "value 1 of key (#" in first
    assert "was denied and is asked last for 5m (RefusedError)" in first
    assert "works again" in second
    assert secret not in caplog.text
    assert [(event.name, event.position) for event in events] == [
        ("value_set_aside", 0),
        ("value_restored", 0),
    ]
    assert events[0].hash == events[1].hash
    assert secret not in repr(events)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


@pytest.mark.parametrize(
    "make",
    [str, SecretStr, lambda key: {"key": key}, lambda key: (key, SecretStr(key)), Unhashable, str.encode],
    ids=["str", "SecretStr", "dict", "tuple", "unhashable", "bytes"],
)
def test_values_of_any_type_are_remembered(bind: Any, make: Any) -> None:
    values = [make("a"), make("b")]
    asked: list[Any] = []

    def ask(key: list[Any]) -> Any:
        asked.append([id(each) for each in values].index(id(key[0])))
        if asked[-1] == 0:
            raise DENIED
        return asked[-1]

    call = bind(Policy(fallback={"arg": "key"}), ask)
    assert [call(list(values)) for _ in range(3)] == [1, 1, 1]
    assert asked == [0, 1, 1, 1]


def test_equal_secrets_are_the_same_value(bind: Any) -> None:
    asked: list[str] = []

    def ask(key: SecretStr) -> str:
        asked.append(key.get_secret_value())
        if asked[-1] == "a":
            raise DENIED
        return asked[-1]

    call = bind(Policy(fallback={"arg": "key"}), ask)
    for _ in range(3):
        assert call([SecretStr("a"), SecretStr("b")]) == "b"
    assert asked == ["a", "b", "b", "b"]


class Response:
    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}


def test_a_returned_response_says_of_a_value_what_an_exception_does(bind: Any) -> None:
    service = Service()

    def ask(key: str) -> Response:
        service(key)
        return Response(401 if key == "a" else 200)

    call = bind(Policy(fallback={"arg": "key"}), ask)
    assert [call(KEYS).status_code for _ in range(3)] == [200] * 3
    assert service.since() == ["a", "b", "b", "b"]
    assert call(["a"]).status_code == 401


def test_a_policy_may_say_what_denies_a_value(bind: Any) -> None:
    service = Service(a=ArithmeticError())

    def ask(key: str) -> str:
        return service(key)

    call = bind(Policy(failures={"denied": [ArithmeticError]}, fallback={"arg": "key", "order": "round_robin"}), ask)
    assert [call(["a", "b"]) for _ in range(5)] == ["b"] * 5
    assert service.asked.count("a") == 1


def test_functions_of_a_profile_share_what_is_remembered() -> None:
    service = Service(a=DENIED)
    registry = Registry({"api": Policy(fallback={"arg": "key"}), "other": Policy(fallback={"arg": "key"})})

    def first(key: str) -> str:
        return service(key)

    def second(url: str, key: str = "") -> str:
        return service(key)

    assert registry.bind(first, "api")(KEYS) == "b"
    assert registry.bind(second, "api")("u", KEYS) == "b"
    assert service.since() == ["a", "b", "b"]
    assert registry.bind(first, "other")(KEYS) == "b"
    assert service.since() == ["a", "b"]


def test_a_new_policy_continues_with_what_was_remembered() -> None:
    service = Service(a=DENIED)

    @opero.opero(fallback={"arg": "key"})
    def ask(key: str) -> str:
        return service(key)

    assert ask(KEYS) == "b"
    ask.binding.swap(Policy(fallback={"arg": "key", "order": "round_robin"}))
    assert [ask(["a", "b"]) for _ in range(3)] == ["b"] * 3
    assert service.since() == ["a", *"bbbb"]


# How many requests are refused, and how many each value gets


async def gather(call: Any, times: int, most: int) -> list[Any]:
    slots = asyncio.Semaphore(most)

    async def one() -> Any:
        async with slots:
            return await call(["dead", "good"])

    return await asyncio.gather(*[one() for _ in range(times)])


@pytest.mark.parametrize("policy", [{}, {"retry": 3, "circuit_breaker": 5}], ids=["alone", "with others"])
@pytest.mark.parametrize(
    ("order", "most"), [("in_order", 1), ("in_order", 32), ("round_robin", 1), ("least_loaded", 1)]
)
def test_of_1000_calls_at_most_5_ask_a_dead_key(policy: Any, order: str, most: int) -> None:
    asked: Counter[str] = Counter()

    @Policy.model_validate({**policy, "fallback": {"arg": "key", "order": order}}).apply
    async def ask(key: str) -> str:
        asked[key] += 1
        await asyncio.sleep(0.0001 if key == "dead" else 0.0005)
        if key == "dead":
            raise RefusedError(403)
        return key

    assert set(asyncio.run(gather(ask, 1000, most))) == {"good"}
    assert asked["good"] == 1000
    assert 1 <= asked["dead"] <= 5


def test_of_1000_requests_to_a_server_at_most_5_are_refused() -> None:
    asked: Counter[str] = Counter()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = (await reader.readline()).decode().strip()
        asked[key] += 1
        writer.write(b"200" if key == "good" else b"401")
        writer.close()

    @opero.opero(arg_fallback="key")
    async def request(key: str) -> int:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"{key}\n".encode())
        status = int(await reader.read())
        writer.close()
        await writer.wait_closed()
        if status != 200:
            raise RefusedError(status)
        return status

    async def main() -> list[int]:
        server = await asyncio.start_server(serve, "127.0.0.1")
        address.extend(server.sockets[0].getsockname())
        async with server:
            return await gather(request, 1000, 32)

    address: list[Any] = []
    assert set(asyncio.run(main())) == {200}
    assert asked["good"] == 1000
    assert 1 <= asked["dead"] <= 5


def test_of_1000_calls_of_32_threads_at_most_5_ask_a_dead_key() -> None:
    asked: Counter[str] = Counter()
    lock = threading.Lock()

    @opero.opero(arg_fallback="key")
    def ask(key: str) -> str:
        with lock:
            asked[key] += 1
        threading.Event().wait(0.001)
        if key == "dead":
            raise RefusedError(401)
        return key

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(ask, [["dead", "good"]] * 1000)) == {"good"}
    assert 1 <= asked["dead"] <= 5


def test_a_key_that_stays_dead_is_tried_by_one_call_each_time_it_has_cooled_down() -> None:
    asked: Counter[str] = Counter()
    clock = VirtualClock()

    async def ask(key: str) -> str:
        asked[key] += 1
        await clock.async_sleep(0.1)
        if key == "dead":
            raise RefusedError(401)
        return key

    call = Policy(fallback={"arg": "key", "remember": "1s"}).apply(ask, clock=clock)
    clock.run(gather(call, 960, 32))  # 30 turns of 32 calls, 0.1 s each
    assert asked["good"] == 960
    assert 2 <= asked["dead"] <= 5


@pytest.mark.parametrize("dead", [False, True], ids=["all good", "one dead"])
@pytest.mark.parametrize("order", ["round_robin", "least_loaded"])
def test_good_keys_share_the_calls_equally(bind: Any, order: str, dead: bool) -> None:
    service = Service(dead=DENIED)
    call = bound(bind, service, order=order)
    keys = [*KEYS[:1], *(["dead"] if dead else []), *KEYS[1:]]
    for _ in range(900):
        call(keys)
    shares = Counter(service.asked)
    assert all(abs(shares[key] - 300) <= 15 for key in KEYS)
    assert shares["dead"] <= dead


@pytest.mark.parametrize(("weights", "shares"), [([3, 1], [0.75, 0.25]), (["2", 1, 1.0], [0.5, 0.25, 0.25])])
def test_weighted_keys_have_their_shares(bind: Any, weights: Any, shares: list[float]) -> None:
    service = Service()
    call = bound(bind, service, order="weighted", weights=weights)
    for _ in range(1000):
        call(KEYS[: len(weights)])
    asked = Counter(service.asked)
    assert [asked[key] / 1000 for key in KEYS[: len(weights)]] == pytest.approx(shares, abs=0.01)


def test_a_weight_that_is_missing_is_1(bind: Any) -> None:
    service = Service()
    call = bound(bind, service, order="weighted", weights=[2])
    for _ in range(1000):
        call(KEYS)
    asked = Counter(service.asked)
    assert [asked[key] / 1000 for key in KEYS] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


def test_the_rest_of_a_round_follows_in_order(bind: Any) -> None:
    service = Service(a=ConnectionError(), b=ConnectionError(), c=ConnectionError())
    for order, weights in (("round_robin", []), ("weighted", [1, 1, 1]), ("least_loaded", [])):
        call = bound(bind, service, order=order, weights=weights)
        for _ in range(3):
            with pytest.raises(AllFailedError):
                call(KEYS)
            assert sorted(service.since()) == KEYS


def test_least_loaded_begins_with_the_key_that_has_the_fewest_calls_in_flight() -> None:
    async def main() -> None:
        blocked = asyncio.Event()
        blocked.set()

        @Policy(fallback={"arg": "key", "order": "least_loaded"}).apply
        async def ask(key: str) -> str:
            if key == "a":
                await blocked.wait()
            return key

        assert sorted([await ask(KEYS) for _ in range(3)]) == KEYS  # all are known to work
        blocked.clear()
        tasks = [asyncio.create_task(ask(KEYS)) for _ in range(9)]
        _, hanging = await asyncio.wait(tasks, timeout=0.05)
        assert len(hanging) == 1  # the others were free at once
        assert [await ask(KEYS) for _ in range(10)].count("a") == 0
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        memory = ask.binding.resolved().executors["values"]
        assert not any(memory.home.memory.running.values())

    asyncio.run(main())


def test_a_generator_uses_its_key_until_it_ends() -> None:
    @Policy(fallback={"arg": "key", "order": "least_loaded"}).apply
    def items(key: str) -> Any:
        yield key
        yield key

    for _ in range(3):
        assert len(list(items(KEYS))) == 2
    memory = items.binding.resolved().executors["values"]
    running = items(KEYS)
    used = next(running)
    assert any(memory.home.memory.running.values())
    assert all(next(items(KEYS)) != used for _ in range(4))
    running.close()
    assert not any(memory.home.memory.running.values())


def test_a_call_that_is_cancelled_leaves_its_key_to_others() -> None:
    async def main() -> None:
        asked: list[str] = []

        @opero.opero(arg_fallback="key")
        async def ask(key: str) -> str:
            asked.append(key)
            await asyncio.sleep(30 if len(asked) == 1 else 0)
            return key

        first = asyncio.create_task(ask(KEYS))
        await asyncio.sleep(0)
        assert await ask(KEYS) == "b"  # the first key is being tried
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await ask(KEYS) == "a"

    asyncio.run(main())


def test_a_failure_after_which_no_other_value_is_used_sets_none_aside(bind: Any) -> None:
    service = Service(a=DENIED)
    call = bound(bind, service, on=["transient"])
    for _ in range(2):
        with pytest.raises(RefusedError):
            call(KEYS)
    assert service.asked == ["a", "a"]


@pytest.mark.parametrize("covers", [False, True])
def test_an_async_function_may_say_whether_another_value_is_used(covers: bool) -> None:
    service = Service(a=DENIED)

    async def covered(error: Exception) -> bool:
        return covers

    async def ask(key: str) -> str:
        return service(key)

    async def main() -> None:
        call = Policy(fallback={"arg": "key", "on": [covered]}).apply(ask)
        for _ in range(2):
            with suppress(RefusedError):
                await call(KEYS)

    asyncio.run(main())
    assert service.asked == (["a", "b", "b"] if covers else ["a", "a"])


def test_a_value_whose_request_is_wrong_is_not_tried_by_one_call_at_a_time() -> None:
    async def main() -> None:
        asked: list[str] = []

        @opero.opero(arg_fallback="key")
        async def ask(key: str, status: int) -> str:
            asked.append(key)
            await asyncio.sleep(0)
            if status != 200:
                raise RefusedError(status)
            return key

        with pytest.raises(RefusedError):
            await ask(KEYS, 404)
        assert await asyncio.gather(*[ask(KEYS, 200) for _ in range(3)]) == ["a"] * 3

    asyncio.run(main())


def test_a_forked_child_has_no_calls_in_flight() -> None:
    call: Any = Policy(fallback={"arg": "key", "order": "least_loaded"}).apply(only_key)
    call([*KEYS])
    home = call.binding.resolved().executors["values"].home
    home.memory.running[(0, 0.0)] = {"x": 3}
    home.after_fork()
    assert not home.memory.running
    assert call([*KEYS]) in KEYS


def only_key(key: str) -> str:
    return key


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_call_that_has_failed_holds_nothing(is_async: bool) -> None:
    held: list[Any] = []

    def ask(key: str) -> str:
        local = Response(1)
        held.append(weakref.ref(local))
        raise RefusedError(401)

    async def ask_async(key: str) -> str:
        return ask(key)

    async def main() -> int:
        call: Any = Policy(fallback={"arg": "key"}).apply(ask_async if is_async else ask)
        for _ in range(2):
            with suppress(AllFailedError):
                await call(KEYS) if is_async else call(KEYS)
        return sum(each() is not None for each in held)

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(main()) == 0
    finally:
        gc.enable()
    assert len(held) == 6


def test_rejections_say_nothing_of_a_value(bind: Any) -> None:
    service = Service(a=ConnectionError(), b=ConnectionError())

    def ask(key: str) -> str:
        return service(key)

    call = bind(Policy(circuit_breaker=1, fallback={"arg": "key"}), ask)
    for _ in range(2):
        with pytest.raises(opero.OperoError):
            call(["a", "b"])
    bind.clock.advance(100)
    service.refuses.clear()
    service.since()
    assert call(["a", "b"]) == "a"
