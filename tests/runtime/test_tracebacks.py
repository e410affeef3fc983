"""What the traceback of a failed call shows, and what it keeps alive."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from opero import AllFailedError, CallTimeoutError, CircuitOpenError, Policy, Registry, opero
from opero.runtime.tracebacks import OWN
from opero.testing import VirtualClock

TWICE: Any = {"retries": 2, "min_delay": 0, "retry_on": Exception}
EVERYTHING: Any = {
    **TWICE,
    "timeout": 60,
    "attempt_timeout": 30,
    "circuit_breaker": 50,
    "rate_limit": 1000,
    "bulkhead": 5,
    "cache_ttl": 5,
}


def divide(by: int = 0) -> float:
    return 1 / by


async def divide_async(by: int = 0) -> float:
    return 1 / by


def generate(by: int = 0) -> Iterator[float]:
    yield 1 / by


async def generate_async(by: int = 0) -> AsyncIterator[float]:
    yield 1 / by


def inline(bound: Callable[[], Any]) -> Exception:
    try:
        bound()
    except Exception as error:
        return error
    raise AssertionError


def in_loop(bound: Callable[[], Any]) -> Exception:
    async def main() -> Exception:
        try:
            await bound()
        except Exception as error:
            return error
        raise AssertionError

    return asyncio.run(main())


def in_thread(bound: Callable[[], Any]) -> Exception:
    found: list[Exception] = []
    thread = threading.Thread(target=lambda: found.append(inline(bound)))
    thread.start()
    thread.join()
    return found[0]


def from_generator(bound: Callable[[], Any]) -> Exception:
    try:
        next(bound())
    except Exception as error:
        return error
    raise AssertionError


def from_async_generator(bound: Callable[[], Any]) -> Exception:
    async def main() -> Exception:
        try:
            await anext(bound())
        except Exception as error:
            return error
        raise AssertionError

    return asyncio.run(main())


def profile(function: Callable[..., Any], **options: Any) -> Any:
    return Registry({"api": Policy.from_options(**options)}).bind(function, "api")


PATHS: dict[str, tuple[Any, Callable[[Any], Exception]]] = {
    "inline": (lambda **options: opero(**options)(divide), inline),
    "profile": (lambda **options: profile(divide, **options), inline),
    "async": (lambda **options: opero(**options)(divide_async), in_loop),
    "async profile": (lambda **options: profile(divide_async, **options), in_loop),
    "thread": (lambda **options: opero(**options)(divide), in_thread),
    "generator": (lambda **options: opero(**options)(generate), from_generator),
    "async generator": (lambda **options: opero(**options)(generate_async), from_async_generator),
}
CASES = [
    pytest.param(path, options, id=f"{path}, {name}")
    for path in PATHS
    for name, options in (("retries", TWICE), ("all policies", EVERYTHING))
    if "generator" not in path or options is TWICE  # a generator has no cache
]


def lines(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


@pytest.mark.parametrize(("path", "options"), CASES)
def test_it_has_the_users_frames_and_a_line_for_each_attempt(path: str, options: Any) -> None:
    bind, call = PATHS[path]
    bound = bind(**options)
    for _ in range(2):  # the first call of a profile takes another path
        error = call(bound)
        assert isinstance(error, AllFailedError)
        shown = lines(error)
        assert len(shown) <= 30, "\n".join(shown)
        assert not any("During handling" in line for line in shown)
        assert sum("test_tracebacks.py" in line for line in shown) == 5  # the caller, the cause, each attempt
        assert not any(f'"{OWN}' in line for line in shown)
        assert error.__cause__ is error.errors[-1]


@pytest.mark.parametrize("path", PATHS)
def test_a_reraised_exception_is_shown_as_without_opero(path: str) -> None:
    bind, call = PATHS[path]
    error = call(bind(**TWICE, reraise=True))
    assert isinstance(error, ZeroDivisionError)
    assert error.__context__ is None
    assert len(lines(error)) <= 9


def test_other_ends_of_a_call_show_no_context_of_operos(bind: Any, script: Any) -> None:
    def ends(policy: Policy, *steps: Any) -> list[str]:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # it is looked at below
            bind(policy, script(*steps))()
        shown = lines(caught.value)
        assert not any("During handling" in line for line in shown)
        return shown

    ends(Policy(retry={"retries": 9, "min_delay": 0}, circuit_breaker=2), OSError(1), OSError(2))
    ends(Policy(retry={"retries": 9, "min_delay": 5}, timeout=3), OSError(1), OSError(2), OSError(3))
    ends(Policy(retry={"min_delay": 0, "retry_on": OSError}), OSError(1), ValueError(2))


@pytest.mark.parametrize("is_async", [False, True])
def test_what_was_handled_when_the_call_began_stays_the_context(is_async: bool) -> None:
    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError:
            raise OSError("outer")  # noqa: B904  # the context is what is tested

    async def fail_async() -> None:
        fail()

    handled = ValueError("before")

    def call() -> Exception:
        try:
            raise handled
        except ValueError:
            return inline(opero(**TWICE, reraise=True)(fail))

    async def call_async() -> Exception:
        try:
            raise handled
        except ValueError:
            try:
                await opero(**TWICE, reraise=True)(fail_async)()
            except Exception as error:
                return error
        raise AssertionError

    error = asyncio.run(call_async()) if is_async else call()
    assert isinstance(error.__context__, KeyError)
    assert error.__context__.__context__ is handled


def test_an_earlier_attempt_says_where_it_failed() -> None:
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("first")
        raise OSError("second")

    error = inline(opero(retries=1, min_delay=0)(fail))
    assert isinstance(error, AllFailedError)
    first, second = error.errors
    line = fail.__code__.co_firstlineno + 4
    assert first.__notes__ == [f'File "{__file__}", line {line}, in fail']
    assert first.__traceback__ is None
    assert second.__traceback__ is not None
    assert not hasattr(second, "__notes__")


@pytest.mark.parametrize("chained", [False, True])
def test_the_frames_of_earlier_attempts_are_freed(bind: Any, chained: bool) -> None:
    def hold() -> None:
        data = bytearray(5_000_000)
        if not chained:
            raise OSError
        try:
            raise KeyError(len(data))
        except KeyError:
            raise OSError from None

    call = bind(Policy(retry={"retries": 20, "min_delay": 0}), hold)
    tracemalloc.start()
    with pytest.raises(AllFailedError):
        call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15_000_000


def test_an_exception_that_is_frozen_or_raised_again_and_again_does_no_harm(bind: Any, script: Any) -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):  # noqa: N818
        code: int

    for error in (Frozen(1), OSError("the same")):
        call = bind(Policy(retry={"retries": 3, "min_delay": 0}), script(error))
        for _ in range(2):
            with pytest.raises(AllFailedError) as caught:
                call()
            assert caught.value.errors == (error,) * 4
            assert not hasattr(error, "__notes__")


def test_the_tracebacks_of_causes_from_elsewhere_are_kept() -> None:
    try:
        raise KeyError("elsewhere")
    except KeyError as error:
        elsewhere = error
    before = elsewhere.__traceback__

    def fail() -> None:
        raise OSError from elsewhere

    with pytest.raises(AllFailedError):
        opero(**TWICE)(fail)()
    assert elsewhere.__traceback__ is before


def test_a_call_out_of_time_shows_its_last_attempt() -> None:
    bound = Policy(retry={"min_delay": 9, "jitter": False}, timeout=1).apply(divide, clock=VirtualClock())
    error = inline(bound)
    assert isinstance(error, CallTimeoutError)
    assert len(lines(error)) <= 16


def test_a_rejection_shows_no_frames_of_operos() -> None:
    bound = opero(retries=9, min_delay=0, circuit_breaker=1)(divide)
    inline(bound)
    error = inline(bound)
    assert isinstance(error, CircuitOpenError)
    assert len(lines(error)) <= 6
