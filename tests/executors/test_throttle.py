"""A throttle around calls, on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from opero import Policy, Registry, ThrottledError, on, opmap, priority
from opero.errors import CallTimeoutError
from opero.executors.throttle import ThrottleExecutor
from opero.testing import VirtualClock


def throttle_of(bound: Any) -> ThrottleExecutor:
    found: ThrottleExecutor = bound.binding.resolved().executors["throttle"]
    return found


class Traffic:
    """Calls that come at an even rate, and a service that may not answer them.

    Args:
        policy: of the function.
        accepts: whether the service answers a call at a moment, from 0 on.
    """

    def __init__(self, policy: Policy, accepts: Callable[[float], bool]) -> None:
        self.clock = VirtualClock(1)
        self.began = self.clock.monotonic()
        self.sent: list[float] = []
        self.accepted: list[float] = []
        self.rejected: list[float] = []
        self.by_priority: Counter[tuple[str, str]] = Counter()
        self._accepts = accepts
        self.bound = policy.apply(self._serve, clock=self.clock)

    @property
    def now(self) -> float:
        return self.clock.monotonic() - self.began

    async def _serve(self) -> None:
        at = self.now
        self.sent.append(at)
        await asyncio.sleep(0.02)
        if not self._accepts(at):
            raise ConnectionError("overloaded")
        self.accepted.append(at)

    def run(self, rate: int, seconds: float, priorities: Any = ("normal",)) -> None:
        async def one(level: Any) -> None:
            outcome = "failed"
            try:
                with priority(level):
                    await self.bound()
                outcome = "answered"
            except ThrottledError:
                self.rejected.append(self.now)
                outcome = "rejected"
            except ConnectionError:
                pass
            self.by_priority[level, outcome] += 1

        async def main() -> None:
            tasks = []
            for number in range(int(rate * seconds)):
                tasks.append(asyncio.ensure_future(one(priorities[number % len(priorities)])))
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*tasks)

        self.clock.run(main())

    def count(self, times: list[float], first: float, last: float) -> int:
        return sum(first <= each < last for each in times)


def capacity(rate: float, burst: int = 5) -> Callable[[float], bool]:
    """Return what answers that many calls a second, and rejects the others."""
    due = 0.0

    def accepts(at: float) -> bool:
        nonlocal due
        due = max(due, at - burst / rate)
        if due > at:
            return False
        due += 1 / rate
        return True

    return accepts


@pytest.mark.parametrize(("rate", "outage"), [(100, 30), (100, 60), (300, 30)])
def test_an_outage_is_spared_nearly_all_calls_and_over_within_two_seconds(rate: int, outage: int) -> None:
    end = 20 + outage
    traffic = Traffic(Policy(throttle=2), lambda at: not 20 <= at < end)
    traffic.run(rate, end + 20)
    assert traffic.count(traffic.rejected, 0, 20) == 0
    assert traffic.count(traffic.sent, 20, end) <= 0.1 * rate * outage
    assert traffic.count(traffic.rejected, end + 2, end + 20) == 0
    assert traffic.count(traffic.accepted, end + 2, end + 20) >= 0.99 * rate * 18


def test_a_service_with_too_little_capacity_gets_twice_what_it_accepts() -> None:
    traffic = Traffic(Policy(throttle=2), capacity(50))
    traffic.run(200, 60)
    assert 90 <= traffic.count(traffic.sent, 10, 60) / 50 <= 115
    assert traffic.count(traffic.accepted, 10, 60) / 50 >= 48


def test_nothing_is_rejected_while_the_service_accepts_most(bind: Any, script: Any) -> None:
    steps = script(*([1, ConnectionError("down"), 1, 1] * 50))
    call = bind(Policy(throttle=2), steps)
    for _ in range(200):
        with contextlib.suppress(ConnectionError):
            call()
    assert bind.bound.stats.rejections == 0


def test_background_calls_are_rejected_first_and_critical_ones_last() -> None:
    traffic = Traffic(Policy(throttle=2), capacity(80))
    traffic.run(200, 60, ("critical", "normal", "background", "normal"))
    shares = {
        level: traffic.by_priority[level, "rejected"] / (60 * 50 * (2 if level == "normal" else 1))
        for level in ("critical", "normal", "background")
    }
    assert shares["critical"] == 0
    assert shares["normal"] < 0.25
    assert shares["background"] > shares["normal"] + 0.2


def test_failures_that_say_nothing_of_the_service_are_answers(bind: Any) -> None:
    def function() -> None:
        raise ValueError("wrong argument")

    call = bind(Policy(throttle={"trip_on": ["transient", "throttled"]}), function)
    for _ in range(50):
        with pytest.raises(ValueError, match="wrong argument"):
            call()
    rejecting, requests, accepts = throttle_of(bind.bound).load()
    assert rejecting == 0
    assert requests == pytest.approx(accepts)


def rejected(call: Callable[[], Any], errors: type[Exception] = ConnectionError) -> ThrottledError:
    """Call until the throttle rejects."""
    for _ in range(200):
        try:
            call()
        except ThrottledError as error:
            return error
        except errors:
            pass
    pytest.fail("nothing was rejected")


def test_the_error_says_why_and_survives_pickling(bind: Any, script: Any, heard: list[Any]) -> None:
    call = bind(Policy(throttle=2), script(ConnectionError("down")))
    error = rejected(call)
    assert "throttled, as the service accepts only 0% of the attempts" in str(error)
    assert error.retry_in == 1.0
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert bind.bound.stats.rejected_by == {"throttle": bind.bound.stats.rejections}
    assert {each.by for each in heard if each.name == "rejected"} == {"throttle"}


def test_retries_are_attempts_and_a_rejection_is_not_retried(bind: Any, script: Any) -> None:
    steps = script(ConnectionError("down"))
    call = bind(Policy(retry=2, throttle=2), steps)
    for _ in range(30):
        with pytest.raises(Exception):  # noqa: PT011
            call()
    stats = bind.bound.stats
    assert stats.rejections > 15
    assert len(steps.calls) + stats.rejections < 2.5 * 30


def test_the_circuit_breaker_does_not_count_what_it_rejects(bind: Any, script: Any) -> None:
    call = bind(Policy(throttle=2, circuit_breaker={"consecutive_failures": 40}), script(ConnectionError("down")))
    rejected(call)
    breaker = bind.bound.binding.circuit_breaker
    before = breaker.details()["failures"]
    rejected(call)
    assert breaker.details()["failures"] <= before + 60
    assert bind.bound.stats.rejected_by.keys() <= {"throttle", "circuit_breaker"}


def test_what_another_policy_rejects_does_not_count(bind: Any) -> None:
    call = bind(Policy(throttle=2, rate_limit={"rate": 1, "max_wait": 0}), lambda: 1)
    call()
    for _ in range(50):
        with pytest.raises(Exception, match="the next permit"):
            call()
    assert throttle_of(bind.bound).load()[1] == pytest.approx(1)


def test_a_deadline_that_has_passed_does_not_count(bind: Any) -> None:
    import opero

    call = bind(Policy(throttle=2), lambda: 1)
    with opero.deadline(0), pytest.raises(CallTimeoutError):
        call()
    assert throttle_of(bind.bound).load()[1] == 0


def test_in_shadow_it_tells_what_it_would_reject(bind: Any, script: Any, heard: list[Any]) -> None:
    call = bind(Policy(throttle={"shadow": True}), script(ConnectionError("down")))
    for _ in range(60):
        with pytest.raises(ConnectionError):
            call()
    assert bind.bound.stats.rejections == 0
    shown = bind.bound.stats.as_dict()["shadow"]
    assert shown["rejected_by"]["throttle"] > 30
    assert {(each.by, each.would) for each in heard if each.name == "shadowed"} == {("throttle", "reject")}


def test_another_policy_keeps_the_counts(bind: Any, script: Any) -> None:
    call = bind(Policy(throttle=2), script(ConnectionError("down")))
    rejected(call)
    before = throttle_of(bind.bound).load()[1:]
    bind.bound.binding.swap(Policy(throttle={"ratio": 3}))
    assert throttle_of(bind.bound).load()[1:] == before


def test_functions_of_a_profile_share_it_unless_it_says_otherwise() -> None:
    clock = VirtualClock()

    def fails() -> None:
        raise ConnectionError

    for scope, shares in (("profile", True), ("function", False)):
        registry = Registry({"api": Policy(throttle={"scope": scope})})
        first, second = registry.bind(fails, "api", clock=clock), registry.bind(lambda: 1, "api", clock=clock)
        rejected(first)
        second_of, first_of = throttle_of(second), throttle_of(first)
        assert (second_of is first_of) is shares


def test_tests_may_begin_anew(script: Any) -> None:
    from opero.testing import fresh_state

    bound = Policy(throttle=2).apply(script(ConnectionError("down")))
    rejected(bound)
    fresh_state()
    assert throttle_of(bound).load() == (0, 0, 0)


def test_its_state_is_seen(bind: Any) -> None:
    def fails() -> None:
        raise ConnectionError

    registry = Registry({"api": Policy(throttle=2)})
    bound = registry.bind(fails, "api")
    rejected(bound)
    shown = registry.stats()["profiles"]["api"]["state"]["throttle"]
    assert 0 < shown["rejecting"] <= 0.95
    assert shown["accepts"] == 0 < shown["requests"]
    assert registry.state("api").throttle.load()[0] == pytest.approx(shown["rejecting"], abs=0.05)


def test_a_generator_counts_by_its_first_item() -> None:
    def function(fails: bool) -> Iterator[int]:
        if fails:
            raise ConnectionError
        yield 1
        raise ConnectionError

    bound = Policy(throttle=2).apply(function, clock=VirtualClock())
    for fails in (True, False):
        with pytest.raises(ConnectionError):
            list(bound(fails))
    assert throttle_of(bound).load()[1:] == pytest.approx((1.97, 1), abs=0.01)


def fail(number: int) -> None:
    raise ConnectionError(str(number))


def test_each_worker_process_has_its_own() -> None:
    bound = opmap(mode="process", workers=2, retries=0, throttle=2, on_error="return", progress=False)(fail)
    kinds = Counter(type(each) for each in bound(range(400)))
    assert kinds.keys() == {ConnectionError, ThrottledError}
    assert kinds[ThrottledError] > 200


def test_a_function_that_is_awaited_may_decide() -> None:
    clock = VirtualClock()

    async def is_overload(error: Exception) -> bool:
        await asyncio.sleep(0)
        return "overload" in str(error)

    async def function(text: str) -> None:
        raise RuntimeError(text)

    bound = Policy(throttle={"trip_on": is_overload}).apply(function, clock=clock)

    async def main(text: str) -> None:
        for _ in range(30):
            with contextlib.suppress(RuntimeError, ThrottledError):
                await bound(text)

    clock.run(main("other"))
    assert bound.stats.rejections == 0
    clock.run(main("overload"))
    clock.run(main("overload"))
    assert bound.stats.rejections > 0


def test_no_listener_is_needed() -> None:
    seen: list[Any] = []
    off = on("rejected", seen.append)
    off()
    with pytest.raises(ThrottledError):
        raise rejected(Policy(throttle=2).apply(lambda: fail(1), clock=VirtualClock()))
    assert seen == []
