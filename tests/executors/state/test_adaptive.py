"""Finding the rate that a service accepts: `rate: adaptive`."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero import Policy, RateLimitExceededError, RateLimitPolicy
from opero.executors.state.adaptive import LEAST, Flow, Found, after_accepted, after_refused, first
from opero.executors.state.adaptive_budget import AdaptiveBudget
from opero.testing import VirtualClock


class Bucket:
    """Accepts so many calls a second, and some more at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.left, self.at = rate, burst, burst, 0.0

    def accepts(self, now: float) -> bool:
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Window:
    """Accepts so many calls in each second of the clock."""

    def __init__(self, rate: float) -> None:
        self.rate, self.second, self.calls = rate, -1, 0

    def accepts(self, now: float) -> bool:
        if int(now) != self.second:
            self.second, self.calls = int(now), 0
        self.calls += 1
        return self.calls <= self.rate


class Response:
    headers: dict[str, str] = {}

    def __init__(self, status: int) -> None:
        self.status_code = status


class Trial:
    """Calls a service under a policy as often as that lets through, for some seconds of virtual time."""

    def __init__(self, service: Any, policy: RateLimitPolicy, latency: float = 0.05) -> None:
        self.clock = VirtualClock()
        self.service, self.latency, self.policy = service, latency, policy
        self.random = random.Random(1)
        self.calls = self.refused = 0
        self.bound: Any = None

    @property
    def rate(self) -> float:
        rate: float = self.bound.binding.pipeline.executors["rate_limit"].limiter.rate()
        return rate

    async def ask(self) -> Response:
        await self.clock.async_sleep(self.latency * self.random.uniform(0.3, 0.7))
        self.calls += 1
        accepts = self.service.accepts(self.clock.monotonic())
        self.refused += not accepts
        await self.clock.async_sleep(self.latency / 2)
        return Response(200 if accepts else 429)

    def run(self, seconds: float = 30, tasks: int = 64) -> None:
        if self.bound is None:
            self.bound = Policy(rate_limit=self.policy).apply(self.ask, clock=self.clock)
        until = self.clock.monotonic() + seconds

        async def work() -> None:
            while self.clock.monotonic() < until:
                await self.bound()

        async def main() -> None:
            await asyncio.gather(*[work() for _ in range(tasks)])

        self.clock.run(main())


@pytest.mark.parametrize("limit", [10, 25, 50, 100, 200])
@pytest.mark.parametrize("kind", ["bucket of 5", "bucket of a second"])
def test_it_finds_a_hidden_limit_within_30_seconds(limit: float, kind: str) -> None:
    trial = Trial(Bucket(limit, 5 if kind == "bucket of 5" else limit), RateLimitPolicy(rate="adaptive"))
    trial.run(30)
    assert trial.rate == pytest.approx(limit, rel=0.1)
    assert trial.refused <= 0.02 * trial.calls


@pytest.mark.parametrize("limit", [10, 50])
def test_it_finds_a_limit_that_is_counted_by_seconds(limit: float) -> None:
    trial = Trial(Window(limit), RateLimitPolicy(rate="adaptive"))
    trial.run(30)
    assert trial.rate == pytest.approx(limit, rel=0.1)
    assert trial.refused <= 0.02 * trial.calls


def test_it_uses_what_it_has_found() -> None:
    trial = Trial(Bucket(50, 5), RateLimitPolicy(rate="adaptive"))
    trial.run(30)
    trial.calls = trial.refused = 0
    trial.run(30)
    assert trial.calls >= 0.9 * 50 * 30
    assert trial.refused <= 0.02 * trial.calls


@pytest.mark.parametrize(("before", "after"), [(40, 20), (20, 40)])
def test_it_follows_a_limit_that_changes(before: float, after: float) -> None:
    trial = Trial(Bucket(before, 5), RateLimitPolicy(rate="adaptive"))
    trial.run(30)
    trial.service.rate = after
    trial.run(60)
    assert trial.rate == pytest.approx(after, rel=0.15)


def test_it_is_never_faster_than_the_policy_allows() -> None:
    trial = Trial(Bucket(1000, 1000), RateLimitPolicy(rate="adaptive up to 20/s"))
    trial.run(30)
    assert trial.rate == 20
    assert trial.calls <= 20 * 30 + 64
    assert trial.refused == 0


def test_it_does_not_grow_where_there_are_few_calls() -> None:
    trial = Trial(Bucket(1000, 1000), RateLimitPolicy(rate="adaptive"), latency=1.0)
    trial.run(60, tasks=5)
    assert trial.rate <= 20


def test_a_service_that_refuses_everything_is_left_alone_more_and_more() -> None:
    trial = Trial(Bucket(0.0, 0.0), RateLimitPolicy(rate="adaptive"))
    trial.run(300)
    assert trial.calls < 100
    trial.calls = 0
    trial.run(300)
    assert trial.calls <= 64 + 12


def test_threads_find_it_as_well() -> None:
    clock = VirtualClock()
    service = Bucket(20, 5)
    lock = threading.Lock()
    counts = [0, 0]

    def ask() -> Response:
        clock.sleep(0.05)
        with lock:
            accepts = service.accepts(clock.monotonic())
            counts[accepts] += 1
        return Response(200 if accepts else 429)

    bound: Any = Policy(rate_limit="adaptive").apply(ask, clock=clock)
    until = clock.monotonic() + 30

    def work() -> None:
        while clock.monotonic() < until:
            bound()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    rate = bound.binding.pipeline.executors["rate_limit"].limiter.rate()
    assert rate == pytest.approx(20, rel=0.15)
    assert counts[0] <= 0.03 * sum(counts)


def test_a_call_that_may_not_wait_is_rejected() -> None:
    clock = VirtualClock()
    bound = Policy(rate_limit={"rate": "adaptive", "max_wait": 0}).apply(lambda: 5, clock=clock)
    assert bound() == 5
    with pytest.raises(RateLimitExceededError, match=r"the next permit of 2\.3/s is 0\.435s away"):
        bound()


def test_exceptions_count_by_their_kind(heard: list[Any]) -> None:
    class ThrottledError(Exception):
        status_code = 429

    clock = VirtualClock()
    outcomes: list[Exception | None] = [None, ValueError("no"), ConnectionError("reset"), ThrottledError()]

    def ask() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    bound: Any = Policy(rate_limit="adaptive").apply(ask, clock=clock)
    limiter, rates = None, []
    while outcomes:
        with suppress(Exception):
            bound()
        limiter = limiter or bound.binding.pipeline.executors["rate_limit"].limiter
        rates.append(limiter.rate())
    assert rates == pytest.approx([2.3, 2.3, 2.3, 2.3 * 0.75])
    (adapted,) = [each for each in heard if each.name == "rate_limit_adapted"]
    assert (adapted.before, adapted.rate) == pytest.approx((2.3, 1.725))


# Decisions


@given(st.lists(st.tuples(st.booleans(), st.floats(0.001, 5), st.floats(0, 2)), max_size=80), st.floats(1, 1000))
def test_rates_stay_within_bounds(outcomes: list[tuple[bool, float, float]], most: float) -> None:
    found, now = first(most), 100.0
    for is_accepted, later, ago in outcomes:
        now += later
        before = found.rate
        found = after_accepted(found, now - ago, now, most) if is_accepted else after_refused(found, now - ago, now)
        assert min(LEAST, most) <= found.rate <= most
        assert (found.rate >= before) if is_accepted else (found.rate <= before)


def test_one_refusal_counts_once_for_all_calls_that_were_under_way() -> None:
    found = after_refused(first(100), 10.0, 10.1)
    for sent in (9.9, 10.0, 10.05, 10.1):
        assert after_refused(found, sent, 10.2) is found
    assert after_refused(found, 10.15, 10.2) is not found


@given(permits=st.floats(0, 1000), rate=st.floats(0.1, 1000), burst=st.integers(1, 10), held=st.floats(0, 10))
def test_permits_fall_due_one_after_the_other(permits: float, rate: float, burst: int, held: float) -> None:
    now = 100.0
    flow = Flow(permits, now, Found(rate)).held(now, held)
    due, waits = 0.0, []
    for _ in range(burst + 5):
        wait, due = flow.book(due, now, float("inf"), burst)
        waits.append(wait)
        assert flow.left(due, now, burst) == pytest.approx(wait, abs=1e-6)
    assert waits[:burst] == pytest.approx([held] * burst, abs=1e-6)
    assert waits[burst:] == pytest.approx([held + n / rate for n in range(1, 6)], rel=1e-6, abs=1e-6)


def test_a_faster_rate_brings_forward_what_was_reserved() -> None:
    now = [100.0]
    budget = AdaptiveBudget(RateLimitPolicy(rate="adaptive"), lambda: now[0])
    receipts = [budget.book(now[0], 1.0, float("inf"))[1] for _ in range(11)]
    assert budget.left(receipts[10], now[0]) == pytest.approx(5)
    for _ in range(10):
        budget.learn(now[0], now[0], is_accepted=True)
    assert budget.rate == pytest.approx(5)
    assert budget.left(receipts[10], now[0]) == pytest.approx(2)
    assert budget.left(receipts[0], now[0]) == 0
    assert not budget.take()
    now[0] = 102.2
    assert budget.take()


# Shared and moved


def limiter(bound: Any) -> Any:
    return bound.binding.pipeline.executors["rate_limit"].limiter


def learn(bound: Any, accepted: int = 0, refused: int = 0) -> None:
    each = limiter(bound)
    for is_accepted in [True] * accepted + [False] * refused:
        now = each.clock.monotonic()
        each.ask(lambda home, now=now, is_accepted=is_accepted: home.learn(now, now, is_accepted=is_accepted))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def shared(rate: str = "adaptive", **options: Any) -> Any:
    limit = {"rate": rate, "share": "machine", "share_as": "work", **options}
    return Policy.model_validate({"rate_limit": limit}).apply(lambda: None)


def test_processes_of_a_machine_find_one_rate(folder: Path) -> None:
    first_one, second = shared(), shared()
    learn(first_one, accepted=10)
    learn(second, accepted=10)
    assert limiter(first_one).rate() == limiter(second).rate() == pytest.approx(2 + 20 * 0.3)
    learn(second, refused=1)
    assert limiter(first_one).rate() == pytest.approx(8 * 0.75)
    first_one()
    second()
    waits = [limiter(each).next_permit() for each in (first_one, second)]
    assert waits[0] == pytest.approx(waits[1], abs=0.1)
    assert waits[0] > 0.05


def test_worker_processes_find_one_rate() -> None:
    bound: Any = Policy(rate_limit="adaptive", parallel={"mode": "process", "workers": 2}).apply(answer)
    assert bound.map(list(range(12)), progress=False) == list(range(12))
    assert limiter(bound).rate() == pytest.approx(2 + 12 * 0.3)


def answer(item: int) -> int:
    return item


@pytest.mark.parametrize("share", ["process", "machine"])
def test_a_rate_that_is_found_is_kept_by_another_policy(share: str, folder: Path) -> None:
    options = {} if share == "process" else {"share": share, "share_as": "work"}
    bound: Any = Policy.model_validate({"rate_limit": {"rate": "adaptive", **options}}).apply(lambda: None)
    learn(bound, accepted=10)
    for rate, found in (("adaptive up to 100/s", 5.0), ("adaptive up to 4/s", 4.0), ("50/s", 50.0), ("adaptive", 2.0)):
        bound.binding.swap(Policy.model_validate({"rate_limit": {"rate": rate, **options}}))
        assert limiter(bound).rate() == pytest.approx(found)


@pytest.mark.parametrize("share", ["process", "machine"])
def test_the_next_permit_is_kept_by_another_policy(share: str, folder: Path) -> None:
    options = {} if share == "process" else {"share": share, "share_as": "work"}
    bound: Any = Policy.model_validate({"rate_limit": {"rate": "0.1/s", **options}}).apply(lambda: None)
    bound()
    for rate in ("adaptive", "0.2/s", "adaptive up to 1/s", "5/s"):
        bound.binding.swap(Policy.model_validate({"rate_limit": {"rate": rate, **options}}))
        assert limiter(bound).next_permit() == pytest.approx(10, abs=0.5)
