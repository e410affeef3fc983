"""Keyed scopes: a state for each value of an argument, independent of the others, bounded, and lost by nothing."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Iterator
from typing import Any, ClassVar
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opero import (
    AllFailedError,
    BulkheadFullError,
    CircuitOpenError,
    ConfigError,
    KeyedScope,
    Policy,
    RateLimitExceededError,
)
from opero.executors import by_key
from opero.executors.scope_keys import origin_of
from opero.testing import VirtualClock

BY = {"by": "tenant"}
BREAKER = {"consecutive_failures": 2, "open_for": 10, "scope": BY}


class DownError(ConnectionError):
    pass


def keyed(**policies: Any) -> Policy:
    return Policy(retry={"retries": 0}, **policies)


def ask(tenant: object, fails: bool = False) -> object:
    if fails:
        raise DownError
    return tenant


def state_of(bound: Any, kind: str = "circuit_breaker") -> Any:
    executor = bound.binding.pipeline.executors["values" if kind == "fallback" else kind]
    return executor.limiter


@pytest.fixture
def few(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only three executors are live, so that states are parked all the time."""
    with mock.patch.object(by_key, "MOST_LIVE", 3):
        yield


# Independent states


def test_a_circuit_opens_for_its_own_value_only(bind: Any) -> None:
    call = bind(keyed(circuit_breaker=BREAKER), ask)
    for _ in range(2):
        with pytest.raises(DownError):
            call("acme", fails=True)
    with pytest.raises(CircuitOpenError, match=r"(ask|async)\[acme\]: the circuit is open for another"):
        call("acme")
    assert [call(each) for each in ("zeta", None, 3, ("a", 1))] == ["zeta", None, 3, ("a", 1)]
    assert state_of(bind.bound).keys() == ["acme", "zeta", None, 3, ("a", 1)]


def test_each_value_has_a_budget_of_its_own(bind: Any) -> None:
    call = bind(keyed(rate_limit={"rate": 1, "max_wait": 0, "scope": BY}), ask)
    for tenant in ("a", "b", "c"):
        assert call(tenant) == tenant
    with pytest.raises(RateLimitExceededError, match=r"(ask|async)\[b\]"):
        call(tenant="b")
    bind.clock.sleep(1)
    assert call("b") == "b"


def test_each_value_has_slots_of_its_own(bind: Any) -> None:
    def nested(tenant: str, inner: str = "") -> str:
        return str(bind.bound(inner)) if inner else tenant

    if bind.kind == "async":
        pytest.skip("a sync function calls itself")
    call = bind(keyed(bulkhead={"max_concurrent": 1, "scope": BY}), nested)
    assert call("a", "b") == "b"
    with pytest.raises(BulkheadFullError, match=r"\[a\]: bulkhead full: 1 of 1"):
        call("a", "a")
    assert call("a") == "a"


def test_what_is_remembered_of_values_is_for_each_value_of_another_argument(bind: Any) -> None:
    asked = []

    class DeniedError(PermissionError):
        status_code = 401

    def fetch(tenant: str, key: str) -> str:
        asked.append((tenant, key))
        if (tenant, key) == ("a", "one"):
            raise DeniedError
        return key

    fetch.__annotations__["key"] = str
    call = bind(Policy(fallback={"arg": "key", "values": ["one", "two"], "scope": BY}), _with_default(fetch))
    assert [call("a"), call("b"), call("a"), call("b")] == ["two", "one", "two", "one"]
    assert asked == [("a", "one"), ("a", "two"), ("b", "one"), ("a", "two"), ("b", "one")]


def _with_default(fetch: Any) -> Any:
    def function(tenant: str, key: str = "") -> str:
        return str(fetch(tenant, key))

    return function


def test_one_dead_host_of_ten_concerns_no_other() -> None:
    clock = VirtualClock()
    served = refused = 0

    def get(url: str) -> str:
        nonlocal served
        if "//h0." in url:
            raise DownError
        served += 1
        return url

    bound = keyed(
        circuit_breaker={"scope": {"by": "url.host"}},
        bulkhead={"max_concurrent": 5, "scope": {"by": "url.host"}},
        rate_limit={"rate": 1000, "burst": 50, "max_wait": 0, "scope": {"by": "url.host"}},
    ).apply(get, clock=clock)
    for number in range(10_000):
        clock.sleep(0.001)
        host = number % 10
        try:
            bound(f"https://h{host}.example/{number}")
        except (CircuitOpenError, RateLimitExceededError, BulkheadFullError):
            refused += host != 0
        except DownError:
            pass
    assert (served, refused) == (9000, 0)
    assert [key for key, _ in state_of(bound).circuits()] == ["https://h0.example"]


steps = st.lists(
    st.tuples(st.sampled_from("abcde"), st.booleans(), st.sampled_from([0.0, 0.1, 1.0, 7.0])), min_size=5, max_size=60
)


@pytest.mark.usefixtures("few")
@settings(max_examples=80)
@given(
    steps=steps,
    policy=st.sampled_from(
        [
            {"circuit_breaker": {"consecutive_failures": 2, "open_for": 3}},
            {"circuit_breaker": {"min_calls": 3, "window": "5s", "open_for": 3, "half_open_calls": 2}},
            {"circuit_breaker": {"min_calls": 3, "window": 4, "open_for": 3}},
            {"rate_limit": {"rate": 0.4, "burst": 2, "max_wait": 1}},
            {"rate_limit": {"rate": 2, "max_wait": 0}, "circuit_breaker": {"consecutive_failures": 1, "open_for": 1}},
        ]
    ),
)
def test_a_keyed_executor_behaves_as_separate_ones(steps: list[Any], policy: dict[str, Any]) -> None:
    def run(bound: Any, clock: VirtualClock) -> list[str]:
        clock.random.seed(7)
        found = []
        for tenant, fails, pause in steps:
            try:
                bound[tenant](tenant, fails)
                found.append("ok")
            except Exception as error:  # compared below
                found.append(f"{type(error).__name__} {getattr(error, 'retry_in', '')} {clock.monotonic()}")
            clock.sleep(pause)
        return found

    clock, other = VirtualClock(), VirtualClock()
    scoped = {kind: {**fields, "scope": BY} for kind, fields in policy.items()}
    one = keyed(**scoped).apply(ask, clock=clock)
    many = {each: keyed(**policy).apply(ask, clock=other) for each in "abcde"}
    assert run(dict.fromkeys("abcde", one), clock) == run(many, other)


# Bounds


@pytest.mark.usefixtures("few")
def test_the_least_recently_used_are_forgotten_first_and_open_circuits_last() -> None:
    policy = {**BREAKER, "consecutive_failures": 1, "scope": {"by": "tenant", "max_keys": 5}}
    bound = keyed(circuit_breaker=policy).apply(ask, clock=VirtualClock())
    table = state_of(bound)
    with contextlib.suppress(DownError):
        bound("open", fails=True)
    for number in range(50):
        bound(number)
        assert table.size() <= 5
    with pytest.raises(CircuitOpenError):
        bound("open")
    for number in range(20):
        with contextlib.suppress(DownError):
            bound(f"open {number}", fails=True)
        assert table.size() <= 5
    assert len(table.circuits()) >= 4


def test_what_has_calls_under_way_is_never_forgotten() -> None:
    clock = VirtualClock()
    started: list[str] = []

    async def hold(tenant: str, seconds: float = 0.0) -> str:
        started.append(tenant)
        await asyncio.sleep(seconds)
        return tenant

    scope = {"by": "tenant", "max_keys": 2}
    bound = keyed(bulkhead={"max_concurrent": 1, "max_wait": None, "scope": scope}).apply(hold, clock=clock)

    async def main() -> None:
        first = [asyncio.create_task(bound(f"long {number}", 100.0)) for number in range(5)]
        await asyncio.sleep(0)
        waiting = asyncio.create_task(bound("long 0"))
        await asyncio.sleep(0)
        for number in range(200):
            await bound(f"quick {number}")
        assert started.count("long 0") == 1
        assert len(state_of(bound, "bulkhead").live) <= 7
        await asyncio.gather(*first, waiting)
        assert started.count("long 0") == 2
        await bound("after")
        assert state_of(bound, "bulkhead").size() <= 7

    clock.run(main())


@pytest.mark.usefixtures("few")
def test_a_result_counts_however_many_other_values_were_used_meanwhile() -> None:
    clock = VirtualClock()

    async def fetch(tenant: str, seconds: float = 0.0, fails: bool = False) -> None:
        await asyncio.sleep(seconds)
        if fails:
            raise DownError

    bound = keyed(circuit_breaker={"consecutive_failures": 1, "scope": BY}).apply(fetch, clock=clock)

    async def main() -> None:
        late = asyncio.create_task(bound("slow", 10.0, fails=True))
        await asyncio.sleep(0)
        for number in range(100):
            await bound(number)
        with pytest.raises(DownError):
            await late
        for number in range(100):
            await bound(number)
        with pytest.raises(CircuitOpenError):
            await bound("slow")

    clock.run(main())


def test_a_stream_holds_its_slot_until_it_ends() -> None:
    def items(tenant: str) -> Iterator[int]:
        yield from range(3)

    with mock.patch.object(by_key, "MOST_LIVE", 1):
        bound = keyed(bulkhead={"max_concurrent": 1, "scope": BY}).apply(items)
        stream = bound("a")
        assert next(stream) == 0
        for number in range(20):
            assert list(bound(str(number))) == [0, 1, 2]
        with pytest.raises(BulkheadFullError):
            next(bound("a"))
        assert list(stream) == [1, 2]
        assert list(bound("a")) == [0, 1, 2]
        assert {entry.calls for entry in state_of(bound, "bulkhead").live.values()} == {0}


@pytest.mark.usefixtures("few")
def test_threads_never_have_two_states_for_one_value() -> None:
    counts: dict[int, int] = {}
    most = 0

    def work(tenant: int) -> None:
        nonlocal most
        counts[tenant] = counts.get(tenant, 0) + 1
        most = max(most, counts[tenant])
        for _ in range(50):
            pass
        counts[tenant] -= 1

    bound = keyed(bulkhead={"max_concurrent": 1, "max_wait": 5, "scope": BY}).apply(work)

    def run(start: int) -> None:
        for number in range(400):
            bound((start + number) % 9)

    threads = [threading.Thread(target=run, args=(start,)) for start in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == 1
    assert all(entry.calls == 0 for entry in state_of(bound, "bulkhead").live.values())


def test_a_cancelled_call_gives_back_its_slot_and_is_under_way_no_more() -> None:
    clock = VirtualClock()

    async def hold(tenant: str) -> None:
        await asyncio.sleep(50)

    policies = {"bulkhead": {"max_concurrent": 1, "scope": BY}, "circuit_breaker": BREAKER}
    bound = keyed(**policies, rate_limit={"rate": 1000, "scope": BY}).apply(hold, clock=clock)

    async def main() -> None:
        for _ in range(3):
            task = asyncio.create_task(bound("a"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    clock.run(main())
    for kind in ("bulkhead", "circuit_breaker", "rate_limit"):
        assert [entry.calls for entry in state_of(bound, kind).live.values()] == [0]
    with state_of(bound, "bulkhead").using("a") as bulkhead:
        assert bulkhead.running == 0


# Values that are keys of attempts


def test_attempts_with_different_keys_count_for_their_own_circuits(bind: Any) -> None:
    asked: list[str] = []

    def fetch(key: str) -> str:
        asked.append(key)
        if key == "bad":
            raise DownError
        return key

    policy = Policy(
        retry={"retries": 0},
        fallback={"arg": "key", "remember": False},
        circuit_breaker={"consecutive_failures": 2, "open_for": 60, "scope": {"by": "key"}},
    )
    call = bind(policy, fetch)
    for _ in range(4):
        assert call(["bad", "good"]) == "good"
    assert asked == ["bad", "good"] * 2 + ["good"] * 2
    assert len(state_of(bind.bound).circuits()) == 1


def test_a_call_counts_once_for_each_key_however_often_it_is_retried(bind: Any) -> None:
    def fetch(key: str) -> None:
        raise DownError

    policy = Policy(
        retry={"retries": 4, "min_delay": 0},
        fallback={"arg": "key", "remember": False},
        circuit_breaker={"consecutive_failures": 2, "open_for": 60, "scope": {"by": "key"}},
    )
    call = bind(policy, fetch)
    with pytest.raises(AllFailedError):
        call(["one", "two"])
    assert state_of(bind.bound).circuits() == []
    with pytest.raises(AllFailedError):
        call(["one", "two"])
    assert len(state_of(bind.bound).circuits()) == 2


# Keys


class Colour(enum.Enum):
    RED = 1


class Plain:
    pass


@pytest.mark.parametrize(
    "key", [None, 0, True, 1.5, "", "é\ud800", b"x", ("a", None), frozenset({1}), Colour.RED, Plain]
)
def test_a_hashable_value_is_a_key(bind: Any, key: object) -> None:
    assert bind(keyed(circuit_breaker=BREAKER), ask)(key) == key


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ([1], "is of type list and is not hashable"),
        ({"a": 1}, "is of type dict and is not hashable"),
        (("a", []), "is of type tuple and is not hashable"),
        (float("nan"), "is of type float and is not equal to itself"),
        (Plain(), "is of type Plain and is equal to no other object"),
    ],
)
def test_a_value_that_cannot_be_a_key_is_an_error_of_its_call(bind: Any, key: object, why: str) -> None:
    call = bind(Policy(retry={"retries": 3}, circuit_breaker=BREAKER), ask)
    with pytest.raises(
        ConfigError, match=rf"(ask|async): the argument 'tenant', .*{why}.*: pass text, a number or a tuple"
    ):
        call(key)
    assert bind.slept == []
    assert call("a") == "a"


def test_a_function_makes_the_key_of_the_arguments_as_they_came(bind: Any) -> None:
    seen: list[Any] = []

    def of(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        return str(kwargs.get("tenant", args and args[0])).lower()

    call = bind(keyed(circuit_breaker={**BREAKER, "scope": {"by": of}}), ask)
    call("Acme")
    call(tenant="ACME", fails=False)
    assert seen == [(("Acme",), {}), ((), {"tenant": "ACME", "fails": False})]
    assert state_of(bind.bound).keys() == ["acme"]


def test_a_parameter_that_the_function_lacks_is_refused_when_it_is_bound() -> None:
    for kind, fields in {"circuit_breaker": {}, "rate_limit": {"rate": 1}, "bulkhead": {"max_concurrent": 1}}.items():
        with pytest.raises(
            ConfigError, match=rf"ask has no parameter 'tennant' for {kind}.scope.by; did you mean 'ten"
        ):
            keyed(**{kind: {**fields, "scope": {"by": "tennant"}}}).apply(ask)
    with pytest.raises(ConfigError, match=r"several arguments in \*args, which is not one for circuit_breaker"):
        keyed(circuit_breaker={"scope": {"by": "args"}}).apply(lambda *args: None)


def test_a_key_that_is_passed_by_name_only_is_not_taken_from_the_arguments_before_it() -> None:
    def ask_all(*urls: str, tenant: str = "none") -> None:
        raise DownError

    bound: Any = keyed(circuit_breaker={**BREAKER, "scope": {"by": "tenant"}}).apply(ask_all)
    for arguments in ({"tenant": "acme"}, {}):
        with pytest.raises(DownError):
            bound("a", "b", "c", **arguments)
    assert set(state_of(bound).keys()) == {"acme", "none"}


def test_an_async_key_function_is_refused_when_it_is_bound() -> None:
    async def of(tenant: str, fails: bool = False) -> str:
        return tenant

    with pytest.raises(ConfigError, match="which is async or a generator function: calling it does not give the key"):
        keyed(circuit_breaker={"scope": {"by": of}}).apply(ask)


def test_a_default_is_the_key_of_calls_that_leave_the_argument_out(bind: Any) -> None:
    def fetch(*, tenant: str = "main") -> str:
        return tenant

    call = bind(keyed(circuit_breaker=BREAKER), fetch)
    assert (call(), call(tenant="main"), call(tenant="a")) == ("main", "main", "a")
    assert state_of(bind.bound).keys() == ["main", "a"]


class Client:
    @keyed(circuit_breaker=BREAKER).apply
    def get(self, tenant: str) -> str:
        return tenant


def test_a_method_has_a_state_for_each_value_of_its_argument() -> None:
    assert (Client().get("a"), Client().get("a"), Client().get(tenant="b")) == ("a", "a", "b")
    assert state_of(Client.get).keys() == ["a", "b"]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://API.example/path?q=1#x", "https://api.example"),
        ("https://user:pass@api.example:443/", "https://api.example"),
        ("http://api.example:8080", "http://api.example:8080"),
        ("http://[::1]:9/x", "http://[::1]:9"),
    ],
)
def test_the_host_of_a_url_is_its_origin(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_an_argument_without_a_host_is_an_error_of_its_call(bind: Any) -> None:
    def get(url: str) -> str:
        return url

    call = bind(keyed(circuit_breaker={"scope": {"by": "url.host"}}), get)
    with pytest.raises(ConfigError, match=r"scope.by is 'url.host', and its argument 'url' is no URL \('/users'\)"):
        call("/users")
    assert call("https://a.example/1") == "https://a.example/1"


def test_a_secret_is_shown_as_a_hash() -> None:
    def fetch(api_key: str) -> None:
        raise DownError

    bound = keyed(circuit_breaker={**BREAKER, "consecutive_failures": 1, "scope": {"by": "api_key"}}).apply(fetch)
    with pytest.raises(DownError):
        bound("s3cr3t")
    with pytest.raises(CircuitOpenError, match=r"fetch\[#[0-9a-f]{6}\]") as caught:
        bound("s3cr3t")
    assert "s3cr3t" not in str(caught.value) + str(state_of(bound).circuits())


# Operators


@pytest.mark.usefixtures("few")
def test_an_operator_opens_and_closes_the_circuit_of_one_value_or_of_all() -> None:
    bound = keyed(circuit_breaker=BREAKER).apply(ask, clock=VirtualClock())
    breaker = bound.binding.circuit_breaker
    bound("a")
    breaker.of("b").force_open()
    for number in range(10):
        bound(number)
    with pytest.raises(CircuitOpenError, match="forced open"):
        bound("b")
    assert (breaker.of("b").state, breaker.of("a").state, breaker.state) == ("forced_open", "closed", "open")
    breaker.of("b").reset()
    assert bound("b") == "b"
    breaker.force_open()
    for each in ("a", "b", "new"):
        with pytest.raises(CircuitOpenError, match="forced open"):
            bound(each)
    assert breaker.state == "forced_open"
    breaker.reset()
    assert [bound(each) for each in ("a", "b", "new", "newer")] == ["a", "b", "new", "newer"]
    assert breaker.state == "closed"


def test_in_shadow_nothing_is_rejected_and_each_value_is_counted(bind: Any) -> None:
    call = bind(keyed(circuit_breaker={**BREAKER, "consecutive_failures": 1, "shadow": True}), ask)
    with pytest.raises(DownError):
        call("a", fails=True)
    assert (call("a"), call("b")) == ("a", "b")
    assert bind.bound.stats.snapshot()["shadow"]["rejected_by"] == {"circuit_breaker": 1}


# Other policies


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("count", [2, 30])
def test_states_are_kept_when_the_policy_is_replaced(count: int) -> None:
    clock = VirtualClock()
    policy = {**BREAKER, "consecutive_failures": 1, "open_for": 100}
    bound = keyed(circuit_breaker=policy, rate_limit={"rate": 0.001, "max_wait": 0, "scope": BY}).apply(
        ask, clock=clock
    )
    for number in range(count):
        with pytest.raises(DownError):
            bound(number, fails=True)
    bound.binding.swap(
        keyed(circuit_breaker={**policy, "open_for": 200}, rate_limit={"rate": 1, "max_wait": 0, "scope": BY})
    )
    for number in range(count):
        with pytest.raises(CircuitOpenError, match="for another (3m|2..s|1..s)"):
            bound(number)
    bound.binding.circuit_breaker.reset()
    with pytest.raises(RateLimitExceededError, match="away"):
        bound(0)
    clock.sleep(2000)
    assert [bound(number) for number in range(count)] == [*range(count)]


def test_calls_under_way_finish_on_the_old_policy_and_count_for_the_new_one() -> None:
    clock = VirtualClock()

    async def fetch(tenant: str, seconds: float = 0.0) -> None:
        await asyncio.sleep(seconds)
        if seconds:
            raise DownError

    policy = {**BREAKER, "consecutive_failures": 1}
    bound = keyed(circuit_breaker=policy, bulkhead={"max_concurrent": 1, "scope": BY}).apply(fetch, clock=clock)

    async def main() -> None:
        late = asyncio.create_task(bound("a", 5.0))
        await asyncio.sleep(0)
        bound.binding.swap(
            keyed(circuit_breaker={**policy, "open_for": 99}, bulkhead={"max_concurrent": 2, "scope": BY})
        )
        await bound("a")
        with pytest.raises(DownError):
            await late
        with pytest.raises(CircuitOpenError):
            await bound("a")

    clock.run(main())
    assert [entry.calls for entry in state_of(bound).live.values()] == [0]
    with state_of(bound, "bulkhead").using("a") as bulkhead:
        assert bulkhead.running == 0


@pytest.mark.parametrize("scope", ["function", {"by": "fails"}, {"by": "tenant", "of": "function"}])
def test_another_argument_begins_anew(scope: Any) -> None:
    bound = keyed(circuit_breaker={**BREAKER, "consecutive_failures": 1}).apply(ask, clock=VirtualClock())
    with pytest.raises(DownError):
        bound("a", fails=True)
    bound.binding.swap(keyed(circuit_breaker={**BREAKER, "scope": scope}))
    same = isinstance(scope, dict) and scope["by"] == "tenant"
    if same:
        with pytest.raises(CircuitOpenError):
            bound("a")
    else:
        assert bound("a") == "a"


# Maps


def test_a_map_in_threads_has_a_state_for_each_value() -> None:
    policy = keyed(
        circuit_breaker={**BREAKER, "consecutive_failures": 1}, parallel={"workers": 1, "on_error": "return"}
    )
    bound = policy.apply(ask, clock=VirtualClock())
    assert bound.map(["a", "b", "a"]) == ["a", "b", "a"]
    assert state_of(bound).keys() == ["b", "a"]


@pytest.mark.parametrize("mode", ["process", "async_process"])
def test_a_map_in_worker_processes_is_refused_with_the_cure(mode: str) -> None:
    async def fetch(tenant: str) -> str:
        return tenant

    policy = keyed(rate_limit={"rate": 5, "scope": BY}, parallel={"mode": mode})
    bound = policy.apply(fetch if mode == "async_process" else ask)
    with pytest.raises(
        ConfigError, match=r"rate_limit cannot be kept for each value of an argument.*use mode='thread'"
    ):
        asyncio.run(bound.map(["a"]))


def test_the_scope_is_written_and_read_as_plain_data() -> None:
    scope = KeyedScope(by="tenant", max_keys=5)
    policy = Policy(circuit_breaker={"scope": scope})
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
    assert policy.replace(circuit_breaker={"open_for": 5}).circuit_breaker.scope == scope  # type: ignore[union-attr]


def test_a_circuit_whose_time_is_over_is_no_trouble_until_its_next_call() -> None:
    clock = VirtualClock()
    bound = keyed(circuit_breaker={**BREAKER, "consecutive_failures": 1}).apply(ask, clock=clock)
    with pytest.raises(DownError):
        bound("a", fails=True)
    breaker = state_of(bound)
    assert ([key for key, _ in breaker.troubled()], breaker.state) == (["a"], "open")
    clock.sleep(20)
    assert (breaker.troubled(), breaker.state) == ([], "closed")
    assert [(key, circuit["state"]) for key, circuit in breaker.circuits()] == [("a", "half_open")]
    with pytest.raises(DownError):
        bound("a", fails=True)
    assert breaker.state == "open"


class ThrottledError(Exception):
    status_code = 429

    class response:  # noqa: N801  # as clients name it
        status_code = 429
        headers: ClassVar = {"retry-after": "60"}


@pytest.mark.usefixtures("few")
def test_a_pause_that_a_service_asks_for_lasts_however_many_other_values_are_used() -> None:
    clock = VirtualClock()

    def fetch(tenant: object, fails: bool = False) -> object:
        if fails:
            raise ThrottledError
        return tenant

    bound = keyed(rate_limit={"rate": 10, "max_wait": 0, "scope": BY}).apply(fetch, clock=clock)
    with pytest.raises(ThrottledError):
        bound("a", fails=True)
    for number in range(20):
        bound(number)
    with pytest.raises(RateLimitExceededError, match="asked for a pause, which lasts 60s more"):
        bound("a")
    clock.sleep(61)
    assert bound("a") == "a"


@pytest.mark.usefixtures("few")
def test_what_has_been_found_of_a_service_is_kept_for_each_value() -> None:
    clock = VirtualClock()
    policies = {
        "rate_limit": {"rate": "adaptive", "scope": BY},
        "bulkhead": {"max_concurrent": "adaptive", "scope": BY},
    }
    bound = keyed(**policies).apply(ask, clock=clock)
    for _ in range(30):
        bound("a")
        clock.sleep(1)
    limits, slots = state_of(bound, "rate_limit"), state_of(bound, "bulkhead")
    with limits.using("a") as limit, slots.using("a") as bulkhead:
        rate, found = limit.own.flow.found.rate, bulkhead.own.state
    assert rate > 2.5
    for number in range(20):
        bound(number)
    assert "a" not in limits.live
    with limits.using("a") as limit, slots.using("a") as bulkhead:
        assert (limit.own.flow.found.rate, bulkhead.own.state) == (rate, found)
