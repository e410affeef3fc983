"""How long to wait between attempts: the jitter, what errors ask for, throttling, and turns of the event loop."""

from __future__ import annotations

import asyncio
import collections
import itertools
import math
import pickle
import random
import statistics
import subprocess
import sys
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.steady import steady
from opero import AllFailedError, BulkheadFullError, CallTimeoutError, CircuitOpenError, Policy, RetryPolicy
from opero.executors.backoff import Backoff, Progress, _power, exponential
from opero.testing import VirtualClock

JITTERS = ("full", "equal", "none")


class Refusal(Exception):  # noqa: N818
    """What an API client raises: a status and headers."""

    def __init__(self, status: int, asked: object = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = {} if asked is None else {"Retry-After": str(asked)}


policies = st.builds(
    lambda first, room, **rest: RetryPolicy(min_delay=first, max_delay=first + room, **rest),
    first=st.sampled_from([0, 1e-300, 0.1, 10]) | st.floats(0, 100),
    room=st.sampled_from([0, 1e9]) | st.floats(0, 100),
    backoff_factor=st.sampled_from([1, 1.5, 2, 1e300]) | st.floats(1, 5),
    jitter=st.sampled_from(JITTERS),
    retries=st.just(5000),
)
eighths = st.integers(0, 1600).map(lambda number: number / 8)
"""Seconds, of which sums are exact."""
attempts = st.integers(1, 12) | st.sampled_from([2000, 10**6])


def exact(policy: RetryPolicy, number: int, first: float) -> float:
    """The exponential delay before retry `number`, by logarithms, which do not overflow."""
    if first == 0:
        return 0.0
    if math.log(first) + (number - 1) * math.log(policy.backoff_factor) >= math.log(max(policy.max_delay, 1e-320)):
        return policy.max_delay
    return min(first * policy.backoff_factor ** (number - 1), policy.max_delay)


def after(policy: RetryPolicy, error: Exception, number: int, seed: int) -> tuple[float, bool]:
    progress = Progress()
    progress.attempt_number = number
    return Backoff(policy, VirtualClock(seed)).after(error, progress)


@given(policies, attempts, st.integers(0, 1000))
def test_a_delay_is_within_the_bounds_of_its_jitter(policy: RetryPolicy, number: int, seed: int) -> None:
    delay, is_asked = after(policy, ConnectionError(), number, seed)
    least = {"full": 0.0, "equal": 0.5, "none": 1.0}[policy.jitter] * exact(policy, number, policy.min_delay)
    most = exact(policy, number + (policy.jitter == "full"), policy.min_delay)
    assert not is_asked
    assert least * (1 - 1e-9) <= delay <= most * (1 + 1e-9)
    assert delay <= policy.max_delay


@given(policies, attempts, st.integers(0, 1000), st.sampled_from([Refusal(429), Refusal(429, "soon")]))
def test_a_throttled_attempt_is_followed_by_at_least_a_second(
    policy: RetryPolicy, number: int, seed: int, error: Exception
) -> None:
    delay, is_asked = after(policy, error, number, seed)
    least = exact(policy, number, max(1.0, policy.min_delay))
    assert not is_asked
    assert min(1.0, policy.max_delay) <= delay <= policy.max_delay
    assert delay >= min(least, policy.max_delay / 2) * (1 - 1e-9)
    assert policy.jitter != "none" or delay == pytest.approx(least)


@given(policies, attempts, st.sampled_from([None, 429]))
def test_the_longest_possible_delay_never_shrinks(policy: RetryPolicy, number: int, status: int | None) -> None:
    class Highest(random.Random):
        def random(self) -> float:
            return 1 - 2**-53

    clock = VirtualClock()
    clock.random = Highest()
    error = ConnectionError() if status is None else Refusal(status)
    backoff, progress, delays = Backoff(policy, clock), Progress(), []
    for progress.attempt_number in (number, number + 1, number + 2):
        delays.append(backoff.after(error, progress)[0])
    assert all(one <= other * (1 + 1e-9) for one, other in itertools.pairwise(delays))


@given(policies, attempts, st.floats(0, 1e6), st.sampled_from([429, 503, 200]))
def test_what_a_header_asks_for_is_what_is_waited(policy: RetryPolicy, number: int, asked: float, status: int) -> None:
    assert after(policy, Refusal(status, asked), number, 0) == (asked, True)
    assert after(policy.replace(retry_after=False), Refusal(status, asked), number, 0)[1] is False


def busiest(jitter: Any, herds: int, clients: int = 10_000, seconds: float = 0.01) -> float:
    """The most of 10,000 clients that failed together whose third retry comes within 10 ms of each other."""
    moments: collections.Counter[int] = collections.Counter()
    backoff, progress = Backoff(RetryPolicy(jitter=jitter), VirtualClock()), Progress()
    error = ConnectionError()
    for _ in range(clients * herds):
        moment = 0.0
        for progress.attempt_number in (1, 2, 3):
            moment += backoff.after(error, progress)[0]
        moments[int(moment / seconds)] += 1
    return max(moments.values()) / herds


def test_clients_that_fail_together_do_not_retry_together() -> None:
    # By the law 293 on average; a single herd has some bins above it, by chance.
    assert busiest("full", herds=30) <= 300
    assert busiest("equal", herds=3) <= 1000
    assert busiest("none", herds=1) == 10_000


def test_clients_that_are_throttled_together_do_not_return_together() -> None:
    policy = RetryPolicy(max_delay=2)
    for number in (1, 9):  # also where max_delay leaves no room above
        delays = [after(policy, Refusal(429), number, seed)[0] for seed in range(500)]
        assert max(delays) - min(delays) > 0.9


@pytest.mark.parametrize(("jitter", "average"), [("full", 0.75), ("equal", 0.75), ("none", 1.0)])
def test_the_average_delay(jitter: Literal["full", "equal", "none"], average: float) -> None:
    policy = RetryPolicy(jitter=jitter, min_delay=1)
    delays = [after(policy, ConnectionError(), 1, seed)[0] for seed in range(4000)]
    assert statistics.mean(delays) == pytest.approx(average, rel=0.03)


# Whole calls, sync and async


@given(
    policies,
    eighths,
    st.none() | eighths.filter(bool),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_call_never_asks_early_and_fails_at_once_only_if_it_would_have_to(
    policy: RetryPolicy, asked: float, total: float | None, failures: int, is_async: bool
) -> None:
    clock = VirtualClock()
    moments: list[float] = []

    def attempt() -> int:
        moments.append(clock.monotonic())
        if len(moments) <= failures:
            raise Refusal(429, asked)
        return 7

    async def attempt_async() -> int:
        return attempt()

    whole = Policy(retry=policy, timeout=None if total is None else {"total": total})
    bound: Any = whole.apply(attempt_async if is_async else attempt, clock=clock)
    left = math.inf if total is None else clock.monotonic() + total
    error: Any = None
    try:
        assert (clock.run(bound()) if is_async else bound()) == 7
    except Exception as caught:
        error = caught
    assert all(other - one >= asked - 1e-9 for one, other in itertools.pairwise(moments))
    if asked > policy.max_delay:
        assert (type(error), error.retry_in, len(moments)) == (Refusal, asked, 1)
    elif moments[0] + asked * failures >= left:
        assert (type(error), error.retry_in) == (CallTimeoutError, asked)
        assert moments[-1] + asked >= left
    else:
        assert error is None
        assert len(moments) == failures + 1


def test_a_time_longer_than_max_delay_fails_the_call_at_once(bind: Any, script: Any) -> None:
    error = Refusal(429, 31)
    with pytest.raises(Refusal) as caught:
        bind(Policy(retry=9), script(error))()
    assert caught.value is error
    assert error.retry_in == 31  # type: ignore[attr-defined]
    assert bind.slept == []

    with pytest.raises(AllFailedError, match="asks to wait 31s, longer than max_delay .30s.") as all_failed:
        bind(Policy(retry={"retries": 9, "min_delay": 0}), script(ConnectionError(), error))()
    assert all_failed.value.retry_in == 31
    assert pickle.loads(pickle.dumps(all_failed.value)).retry_in == 31
    assert all_failed.value.derive([error]).retry_in == 31

    with pytest.raises(Refusal):
        bind(Policy(retry={"retries": 9, "min_delay": 0, "reraise": True}), script(ConnectionError(), error))()
    assert bind(Policy(retry=9, fallback={"default": 3}), script(error))() == 3


def test_a_time_longer_than_the_deadline_fails_the_call_at_once(bind: Any, script: Any) -> None:
    error = Refusal(503, 20)
    with pytest.raises(CallTimeoutError) as caught:
        bind(Policy(retry=9, timeout=20), script(error))()
    assert (caught.value.retry_in, caught.value.__cause__, bind.slept) == (20, error, [])
    assert pickle.loads(pickle.dumps(caught.value)).retry_in == 20
    with pytest.raises(CallTimeoutError) as caught:
        bind(Policy(retry={"jitter": False, "min_delay": 10}, timeout=5), script(OSError()))()
    assert caught.value.retry_in is None  # nobody asked


def test_the_error_after_the_last_attempt_says_what_it_asked_for(bind: Any, script: Any) -> None:
    with pytest.raises(AllFailedError, match="it asks to wait 7s$") as caught:
        bind(Policy(retry=1), script(Refusal(429, 7)))()
    assert caught.value.retry_in == 7
    with pytest.raises(AllFailedError) as caught:
        bind(Policy(retry=1), script(Refusal(429, 7), OSError()))()
    assert caught.value.retry_in is None


def test_an_exception_without_room_for_an_attribute_is_raised_as_it_is(bind: Any, script: Any) -> None:
    class Full(Refusal):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "retry_in":
                raise AttributeError(name)
            super().__setattr__(name, value)

    with pytest.raises(Full):
        bind(Policy(retry=1), script(Full(429, 99)))()


def test_the_time_that_a_nested_call_asks_for_is_waited(bind: Any, script: Any) -> None:
    inner = AllFailedError("down", [OSError()], retry_in=9.0)
    assert bind(Policy(retry=1), script(inner, 5))() == 5
    assert bind.slept == [9]


def test_a_throttled_attempt_without_a_header_waits_longer_each_time(bind: Any, script: Any) -> None:
    policy = Policy(retry={"retries": 4, "jitter": False, "backoff_factor": 2, "max_delay": 5})
    with pytest.raises(AllFailedError):
        bind(policy, script(Refusal(429)))()
    assert bind.slept == [1, 2, 4, 5]


def test_a_status_503_without_a_header_is_no_throttling(bind: Any, script: Any) -> None:
    policy = Policy(retry={"jitter": False, "retry_after": False})
    assert bind(policy, script(Refusal(503), Refusal(503, 60), 5))() == 5
    assert bind.slept == [0.1, 1.5]


# Several values of the fallback argument


class Keys:
    """A service that refuses keys by their own scripts, and records who asks when."""

    def __init__(self, clock: VirtualClock, **answers: Any) -> None:
        self.clock = clock
        self.answers = {key: iter(each) for key, each in answers.items()}
        self.asked: list[tuple[str, float]] = []

    def __call__(self, key: str) -> Any:
        self.asked.append((key, self.clock.monotonic() - 1000))
        answer = next(self.answers[key])
        if isinstance(answer, Exception):
            raise answer
        return answer


def keys_policy(**retry: Any) -> Policy:
    return Policy(retry={"jitter": False, "min_delay": 1, "backoff_factor": 1, **retry}, fallback={"arg": "key"})


def test_the_soonest_of_several_keys_decides_and_the_others_are_not_asked_early(bind: Any) -> None:
    service = Keys(bind.clock, a=[Refusal(429, 10), 1], b=[Refusal(429, 3), Refusal(429, 9), 2])
    assert bind(keys_policy(), service)(["a", "b"]) == 1
    assert service.asked == [("a", 0), ("b", 0), ("b", 3), ("a", 10)]


def test_keys_that_are_due_together_are_asked_in_their_order(bind: Any) -> None:
    service = Keys(bind.clock, a=[Refusal(429, 4), 1], b=[OSError()] * 4 + [2])
    assert bind(keys_policy(retries=9, min_delay=2), service)(["a", "b"]) == 1
    assert service.asked == [("a", 0), ("b", 0), ("b", 2), ("a", 4)]


def test_keys_fail_at_once_if_even_the_soonest_asks_for_too_long(bind: Any) -> None:
    service = Keys(bind.clock, a=[Refusal(429, 90)], b=[Refusal(429, 60)])
    with pytest.raises(AllFailedError) as caught:
        bind(keys_policy(), service)(["a", "b"])
    assert (caught.value.retry_in, bind.slept) == (60, [])


def test_a_key_that_is_given_up_leaves_the_time_of_the_other(bind: Any) -> None:
    service = Keys(bind.clock, a=[Refusal(429, 40)], b=[OSError(), ValueError()])
    with pytest.raises(AllFailedError) as caught:
        bind(keys_policy(retry_on=(OSError, Refusal)), service)(["a", "b"])
    assert caught.value.retry_in == 39
    assert service.asked == [("a", 0), ("b", 0), ("b", 1)]


def test_a_key_that_has_to_wait_keeps_its_retries(bind: Any) -> None:
    service = Keys(bind.clock, a=[OSError()] * 9, b=[Refusal(429, 9), Refusal(429, 9), 2])
    assert bind(keys_policy(retries=2), service)(["a", "b"]) == 2
    assert service.asked == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("b", 9), ("b", 18)]


def test_all_keys_wait_for_an_open_circuit(bind: Any) -> None:
    policy = keys_policy(retry_on=(Refusal, CircuitOpenError)).replace(
        circuit_breaker={"consecutive_failures": 1, "open_for": 20, "trip_on": "throttled"}
    )
    service = Keys(steady(bind.clock), a=[Refusal(429, 5), 1], b=[Refusal(429, 5), 2])
    assert bind(policy, service)(["a", "b"]) == 1
    assert service.asked == [("a", 0), ("b", 0), ("a", 20)]


@given(
    asks=st.lists(st.lists(st.none() | st.integers(0, 40), min_size=1, max_size=3), min_size=2, max_size=4),
    jitter=st.sampled_from(JITTERS),
    is_async=st.booleans(),
)
def test_no_key_is_ever_asked_early(asks: list[list[int | None]], jitter: str, is_async: bool) -> None:
    clock = VirtualClock()
    names = "abcd"[: len(asks)]
    answers = {
        name: [OSError() if ask is None else Refusal(429, ask) for ask in each] + [name] * 9
        for name, each in zip(names, asks, strict=True)
    }
    service = Keys(clock, **answers)

    def ask(key: str) -> Any:
        return service(key)

    async def ask_async(key: str) -> Any:
        return service(key)

    policy: Any = Policy(retry={"retries": 20, "jitter": jitter}, fallback={"arg": "key"})
    bound = policy.apply(ask_async if is_async else ask, clock=clock)
    soonest = min(each[0] or 0 for each in asks)
    try:
        assert (clock.run(bound(list(names))) if is_async else bound(list(names))) in names
    except AllFailedError as error:
        assert soonest > 30 or all(any((one or 0) > 30 for one in each) for each in asks)
        assert error.retry_in is not None
    for name, each in zip(names, asks, strict=True):
        moments = [moment for key, moment in service.asked if key == name]
        for (one, other), wait in zip(itertools.pairwise(moments), each, strict=False):
            assert other - one >= (wait or 0) - 1e-9


# Turns of the event loop


def test_retries_without_a_delay_let_other_tasks_run() -> None:
    clock, turns, seen = VirtualClock(), 0, []

    async def fail() -> None:
        seen.append(turns)
        raise ConnectionError

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(other())
        with pytest.raises(AllFailedError):
            await Policy(retry={"retries": 2000, "min_delay": 0}).apply(fail, clock=clock)()
        task.cancel()

    clock.run(main())
    assert len(seen) == 2001
    assert seen[-1] - seen[0] >= 1900
    assert clock.slept == []


def test_a_full_bulkhead_says_no_time(bind: Any, script: Any) -> None:
    policy = Policy(retry={"retry_on": BulkheadFullError, "jitter": False, "retries": 1})
    assert bind(policy, script(BulkheadFullError("full"), 5))() == 5
    assert bind.slept == [0.1]


def test_a_first_failure_is_retried_though_no_file_can_be_opened() -> None:
    """What the delay needs is imported after the first failure, which may be that the process has no descriptors."""
    code = """
import resource
from opero import Policy
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
calls = []

def function():
    calls.append(len(calls))
    if len(calls) < 3:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        open("/dev/null")
    return "ok"

bound = Policy(retry={"retries": 3, "min_delay": "1ms", "retry_on": ["transient", "unknown"]}).apply(function)
try:
    result = bound()
finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
print(result, calls)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok [0, 1, 2]\n", done.stderr


@pytest.mark.parametrize(("first", "longest", "factor"), [(0.1, 30.0, 2.0), (1.5, 1e6, 1.0), (0.5, 8.0, 1e9)])
def test_the_delay_without_tenacity_is_that_of_tenacity(first: float, longest: float, factor: float) -> None:
    theirs, progress = exponential(first, longest, factor), Progress()
    for number in (1, 2, 3, 7, 30, 2000):
        progress.attempt_number = number
        assert theirs(progress) == _power(first, longest, factor, number - 1)
