"""A function with a profile makes the attempts and the waits of the original, and ends as it does.

The originals run in the real libraries, in which only sleeping and chance are replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tenacity

from opero import AllFailedError, CallTimeoutError, Registry, set_default_registry
from opero.migrate.migration import Use, plan
from opero.testing import VirtualClock, virtual_clock

MODULE = """\
import datetime
import random
import socket
from datetime import timedelta

import backoff
import stamina
import tenacity
from tenacity import retry, retry_if_exception, retry_if_exception_type, retry_if_not_exception_type
from tenacity import retry_if_not_result, retry_if_result, stop_after_attempt, stop_after_delay, stop_any
from tenacity import stop_before_delay, wait_chain, wait_combine, wait_exponential, wait_fixed, wait_incrementing
from tenacity import wait_none, wait_random, wait_random_exponential


class Busy(Exception):
    pass


def is_busy(error):
    return isinstance(error, Busy)


def is_os(error) -> bool:
    return isinstance(error, OSError)
"""
MAKE = """


def make_{number}(next_outcome):
    {decorator}
    {kind} function():
        return next_outcome()

    return function
"""
STOP = "stop=stop_after_attempt(4)"
EXACT = [
    f"@retry({STOP}, reraise=True)",
    "@retry(stop=stop_after_attempt(1), reraise=True)",
    f"@retry({STOP}, wait=wait_none(), retry=retry_if_exception_type(OSError), reraise=True)",
    f"@retry({STOP}, wait=wait_fixed(2), retry=retry_if_exception_type((OSError, KeyError)), reraise=True)",
    f"@retry({STOP}, wait=wait_fixed(datetime.timedelta(milliseconds=1500)), reraise=True)",
    f"@retry({STOP}, wait=wait_fixed(timedelta(0, 90)), reraise=True)",
    f"@tenacity.retry({STOP}, wait=tenacity.wait_exponential(multiplier=1, max=30), reraise=True)",
    f"@retry({STOP}, wait=wait_exponential(0.5, 1, exp_base=3), reraise=True)",
    f"@retry({STOP}, wait=wait_exponential(8, 10), reraise=True)",
    "@retry(stop=stop_after_attempt(9), wait=wait_exponential(multiplier=10), reraise=True)",
    "@retry(stop=stop_after_attempt(3), wait=wait_exponential(multiplier=1, min=4, max=10), reraise=True)",
    "@retry(stop=stop_after_attempt(3), wait=wait_incrementing(start=1, increment=1), reraise=True)",
    f"@retry({STOP}, wait=wait_chain(wait_fixed(1), wait_fixed(2), wait_fixed(4)), reraise=True)",
    f"@retry({STOP}, wait=wait_fixed(1) + wait_fixed(2), reraise=True)",
    f"@retry({STOP}, wait=wait_combine(wait_fixed(1), wait_exponential(max=0)), reraise=True)",
    f"@retry({STOP}, wait=wait_random_exponential(max=30), reraise=True)",
    f"@retry({STOP}, wait=wait_random_exponential(multiplier=0.5, max=3, exp_base=3), reraise=True)",
    f"@retry({STOP}, wait=wait_random(0, 3), reraise=True)",
    f"@retry({STOP}, wait=wait_random(min=1, max=2), reraise=True)",
    "@retry(stop=stop_any(stop_after_attempt(3), stop_after_attempt(7)), reraise=True)",
    "@retry(stop=stop_after_attempt(5) | stop_after_delay(1000), wait=wait_fixed(2), reraise=True)",
    "@retry(stop=stop_before_delay(1000) | stop_after_attempt(3), wait=wait_fixed(2), reraise=True)",
    f"@retry({STOP}, retry=retry_if_exception_type(Busy), reraise=True)",
    f"@retry({STOP}, retry=retry_if_exception_type((Busy, OSError)), reraise=True)",
    f"@retry({STOP}, retry=retry_if_exception_type(), reraise=True)",
    f"@retry({STOP}, retry=retry_if_exception_type(OSError) | retry_if_exception(is_busy), reraise=True)",
    f"@retry({STOP}, retry=retry_if_exception(lambda error: 'no' in str(error)), reraise=True)",
    f"@retry({STOP}, retry=retry_if_not_exception_type(OSError), reraise=True)",
    f"@retry({STOP}, retry=retry_if_exception_type(socket.timeout), reraise=True)",
    f"@retry({STOP})",
    f"@retry({STOP}, wait=wait_fixed(3), retry=retry_if_result(lambda result: result is None))",
    f"@retry({STOP}, retry=retry_if_not_result(bool), reraise=True)",
    f"@retry({STOP}, retry=retry_if_exception_type(OSError) | retry_if_result(lambda result: result is None))",
    "@stamina.retry(on=OSError, attempts=4, wait_jitter=0)",
    "@stamina.retry(on=(OSError, Busy), wait_initial=1, wait_max=3.0, wait_jitter=0.0, timeout=None)",
    "@stamina.retry(on=Exception, attempts=3, wait_initial=timedelta(seconds=2), wait_exp_base=1, wait_jitter=0)",
    "@stamina.retry(on=lambda error: isinstance(error, Busy), attempts=4, wait_jitter=0)",
    "@backoff.on_exception(backoff.expo, OSError, max_tries=4)",
    "@backoff.on_exception(backoff.expo, (OSError, Busy), jitter=None, max_tries=6, factor=3, base=2, max_value=40)",
    "@backoff.on_exception(backoff.expo, exception=Exception, jitter=backoff.full_jitter, max_tries=3, logger=None)",
    "@backoff.on_exception(backoff.constant, OSError, interval=0, jitter=None, max_tries=4, max_time=1000)",
    "@backoff.on_exception(backoff.constant, OSError, jitter=None, max_tries=4)",
    "@backoff.on_exception(wait_gen=backoff.fibo, exception=OSError, jitter=None, max_tries=3)",
    "@backoff.on_exception(backoff.constant, OSError, max_tries=4, giveup=is_busy)",  # is_busy is not async
    "@backoff.on_exception(backoff.constant, Exception, max_tries=4, giveup=lambda error: isinstance(error, OSError))",
    "@backoff.on_predicate(backoff.constant, jitter=None, interval=2, max_tries=3)",
    "@backoff.on_predicate(backoff.expo, lambda result: result is None, max_tries=4)",
]
"""Decorators that a profile replaces with the same delays."""
JITTERED = [
    f"@retry({STOP}, wait=wait_exponential(max=20) + wait_random(0, 2), reraise=True)",
    f"@retry({STOP}, wait=wait_random(1, 3), reraise=True)",
    f"@tenacity.retry({STOP}, wait=tenacity.wait_exponential_jitter(multiplier=1, max=20), reraise=True)",
    f"@retry({STOP}, wait=wait_random_exponential(min=1, max=20), reraise=True)",
    "@stamina.retry(on=OSError)",
    "@backoff.on_exception(backoff.expo, OSError, jitter=backoff.random_jitter, max_tries=4)",
]
"""Decorators whose delays have another jitter in a profile."""


@dataclass(frozen=True)
class Response:
    """What opero takes for a failed response, and other libraries for a result."""

    status_code: int


@dataclass
class Ran:
    """The attempts, delays and end of a call."""

    attempts: int = 0
    delays: list[float] = field(default_factory=list)
    end: Any = None

    def call(self, make: Callable[..., Any], outcomes: Sequence[Any], run: Callable[[Any], Any]) -> Ran:
        def next_outcome() -> Any:
            outcome = outcomes[min(self.attempts, len(outcomes) - 1)]
            self.attempts += 1
            if isinstance(outcome, Exception):
                raise outcome.with_traceback(None)
            return outcome

        try:
            self.end = run(make(next_outcome)())
        except Exception as error:
            self.end = error
        return self


class Worlds:
    """Runs functions in the real libraries, where sleeping takes no time, and in opero on a virtual clock."""

    def __init__(self, kind: str, runner: asyncio.Runner, clock: VirtualClock, patch: pytest.MonkeyPatch) -> None:
        is_async = kind != "def"
        self.clock, self.patch, self.delays = clock, patch, list[float]()
        self.run = runner.run if is_async else lambda value: value
        self.run_virtual = clock.run if is_async else lambda value: value

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)

    def original(self, make: Callable[..., Any], outcomes: Sequence[Any]) -> Ran:
        self.delays = []
        with self.patch.context() as patched:
            patched.setattr(time, "sleep", self.delays.append)
            patched.setattr(asyncio, "sleep", self.sleep)
            return Ran(delays=self.delays).call(make, outcomes, self.run)

    def migrated(self, make: Callable[..., Any], outcomes: Sequence[Any]) -> Ran:
        self.clock.slept.clear()
        ran = Ran().call(make, outcomes, self.run_virtual)
        ran.delays = [*self.clock.slept]
        return ran


@pytest.fixture
def worlds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worlds]:
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else "def"
    with asyncio.Runner() as runner, virtual_clock() as clock, monkeypatch.context() as patch:
        patch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
        patch.setattr(random, "random", lambda: 0.5)
        clock.random.random = lambda: 0.5  # type: ignore[method-assign]
        yield Worlds(kind, runner, clock, monkeypatch)


LIMITED = [
    ("@retry(stop=stop_after_delay(30), wait=wait_fixed(4), reraise=True)", 30, 7),
    ("@retry(stop=stop_after_attempt(50) | stop_after_delay(30), wait=wait_fixed(4), reraise=True)", 30, 7),
    ("@stamina.retry(on=OSError, attempts=None, wait_jitter=0)", 45, 13),
    ("@backoff.on_exception(backoff.expo, OSError, max_time=60, jitter=None)", 60, 5),
    ("@backoff.on_exception(backoff.expo, OSError, max_time=60)", 60, 6),
]
"""Decorators with a time limit, and so many retries."""
ASYNC = EXACT[::4]
FUNCTIONS = [
    *(("def", each) for each in (*EXACT, *JITTERED, *(each for each, *_ in LIMITED))),
    *(("async def", each) for each in ASYNC),
]


def loaded(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "client"}
    exec(compile(source, "client.py", "exec"), namespace)
    return namespace


@dataclass
class Both:
    """A module before and after, its registry, and what has been replaced, by line."""

    before: dict[str, Any]
    after: dict[str, Any]
    registry: Registry
    replaced: list[Use]

    def makers(self, kind: str, decorator: str) -> tuple[Callable[..., Any], Callable[..., Any], Use]:
        number = FUNCTIONS.index((kind, decorator))
        return self.before[f"make_{number}"], self.after[f"make_{number}"], self.replaced[number]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    directory = tmp_path_factory.mktemp("migrated")
    path = directory / "client.py"
    makers = [MAKE.format(number=number, decorator=each, kind=kind) for number, (kind, each) in enumerate(FUNCTIONS)]
    path.write_text(MODULE + "".join(makers))
    before = loaded(path.read_text())
    migration = plan([path], directory / "policies")
    assert [each.found.reason for each in migration.left] == []
    assert len(migration.replaced) == len(FUNCTIONS)
    migration.write()
    registry = Registry.load(directory / "policies")
    after = loaded(path.read_text())
    for name in ("tenacity", "stamina", "backoff", "timedelta", "retry"):
        assert name not in after, "imports that are not used any more are removed"
    after["Busy"] = before["Busy"]  # `make` looks it up when it is called
    return Both(before, after, registry, migration.replaced)


def differences_of(use: Use) -> list[str]:
    assert use.found.translation is not None
    return use.found.translation.differences


def scripts(busy: type[Exception]) -> Iterator[tuple[Any, ...]]:
    """What attempts come to, the last of them for ever: all combinations of two."""
    asking = busy("busy")
    asking.retry_after = 7  # type: ignore[attr-defined]  # which opero would wait for by default
    outcomes = [OSError("no"), TimeoutError("late"), asking, Response(503), None]
    return itertools.chain.from_iterable(itertools.product(outcomes, repeat=length) for length in (1, 2))


@pytest.fixture(autouse=True)
def _registry(both: Both) -> Iterator[None]:
    set_default_registry(both.registry)
    yield
    set_default_registry(None)


@pytest.mark.parametrize(
    ("kind", "decorator"), [*(("def", each) for each in EXACT), *(("async def", each) for each in ASYNC)]
)
def test_attempts_delays_and_the_end_are_the_same(decorator: str, kind: str, both: Both, worlds: Worlds) -> None:
    before, after, use = both.makers(kind, decorator)
    differences = differences_of(use)
    compared = 0
    for outcomes in scripts(both.before["Busy"]):
        one, other = worlds.original(before, outcomes), worlds.migrated(after, outcomes)
        assert one.attempts == other.attempts, outcomes
        assert [each for each in one.delays if each] == pytest.approx([each for each in other.delays if each])
        if isinstance(one.end, tenacity.RetryError):
            assert isinstance(other.end, AllFailedError)
            assert any("AllFailedError" in each for each in differences)
        else:
            assert one.end is other.end, outcomes
        compared += 1
    assert compared == 30
    assert not any(each.startswith("delays are drawn") for each in differences)
    assert any("logger opero" in each for each in differences) == ("backoff" in decorator and "logger" not in decorator)
    assert any("set_active" in each for each in differences) == ("stamina" in decorator)


@pytest.mark.parametrize("decorator", JITTERED)
def test_another_jitter_is_listed_with_the_delays_that_are_drawn(decorator: str, both: Both, worlds: Worlds) -> None:
    before, after, use = both.makers("def", decorator)
    differences = differences_of(use)
    listed = next(each for each in differences if each.startswith("delays are drawn from "))
    drawn, so_far = listed.removeprefix("delays are drawn from ").removesuffix(" s").split(" s instead of ")
    for ran, text in (
        (worlds.migrated(after, [OSError()]), drawn),
        (worlds.original(before, [OSError()]), so_far),
    ):
        ranges = [each.split("–") for each in text.removesuffix(", …").split(", ")]
        assert len(ran.delays) >= 3
        for delay, each in zip(ran.delays, ranges, strict=False):
            assert delay == pytest.approx((float(each[0]) + float(each[-1])) / 2, rel=0.01), text
    for outcomes in scripts(both.before["Busy"]):
        one, other = worlds.original(before, outcomes), worlds.migrated(after, outcomes)
        assert one.attempts == other.attempts


@pytest.mark.parametrize(("decorator", "total", "retries"), LIMITED)
def test_a_time_limit_allows_the_retries_whose_delays_fit_into_it(
    decorator: str, total: float, retries: int, both: Both, worlds: Worlds
) -> None:
    _, after, use = both.makers("def", decorator)
    differences = differences_of(use)
    assert both.registry[use.profile].retry.retries == retries
    assert any("CallTimeoutError" in each for each in differences)
    assert any("on average" in each for each in differences) == ("jitter" not in decorator and "backoff" in decorator)
    ran = worlds.migrated(after, [OSError("no")])
    assert (ran.attempts, type(ran.end)) == (retries + 1, OSError)

    def fail_late() -> None:
        worlds.clock.advance(total - 0.01)
        raise OSError("no")

    with pytest.raises(CallTimeoutError) as raised:
        after(fail_late)()
    assert isinstance(raised.value.__cause__, OSError)
