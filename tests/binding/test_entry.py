"""The function that callers call: its parameters, and which arguments it passes on, and how."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import traceback
from typing import Any

import pytest

from opero import Policy, Registry, opero
from opero.testing import VirtualClock


def stack_depth() -> int:
    frame, depth = sys._getframe(1), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return depth


def frames_a_level(decorate: Any) -> int:
    depths: list[int] = []

    @decorate
    def down(number: int) -> int:
        depths.append(stack_depth())
        return number and 1 + down(number - 1)  # type: ignore[no-any-return]

    assert down(5) == 5
    return depths[4] - depths[3]


@pytest.mark.parametrize(
    ("decorate", "most"),
    [(opero, 2), (opero(retries=0), 2), (opero(retries=0, cache=True), 4), (opero(cache=True), 4)],
)
def test_recursion_takes_few_frames_a_level(decorate: Any, most: int) -> None:
    assert frames_a_level(decorate) <= most


def test_parameters_of_every_kind_arrive() -> None:
    @opero
    def function(a: int, /, b: int, c: int = 3, *rest: int, d: int, e: int = 5, **others: int) -> Any:
        return a, b, c, rest, d, e, others

    assert function(1, 2, d=4) == (1, 2, 3, (), 4, 5, {})
    assert function(1, c=9, b=2, d=4, z=0) == (1, 2, 9, (), 4, 5, {"z": 0})
    assert function(1, 2, 3, 4, 5, d=6, e=7) == (1, 2, 3, (4, 5), 6, 7, {})
    assert inspect.signature(function, follow_wrapped=False).parameters.keys() == {*"abcde", "rest", "others"}


def test_wrong_arguments_are_refused_at_once_by_the_functions_name() -> None:
    calls: list[int] = []

    @opero(clock=VirtualClock())
    def function(a: int) -> None:
        calls.append(a)

    with pytest.raises(TypeError, match=r"function\(\) missing 1 required positional argument: 'a'"):
        function()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"function\(\) got an unexpected keyword argument 'b'"):
        function(1, b=2)  # type: ignore[call-arg]
    assert calls == []
    assert function.stats.calls == 0


def test_an_async_function_refuses_wrong_arguments_before_it_is_awaited() -> None:
    @opero
    async def function(a: int) -> None: ...

    asyncio.run(function(1))
    with pytest.raises(TypeError, match="missing 1 required"):
        function()  # type: ignore[call-arg]


def test_mutable_defaults_are_those_of_the_function() -> None:
    @opero
    def append(value: int, to: list[int] = []) -> list[int]:  # noqa: B006
        to.append(value)
        return to

    assert append(1) is append(2) == [1, 2]


def test_a_builtin_without_a_signature_is_bound() -> None:
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(max)
    assert Policy(retry=1).apply(max)(1, 2) == 2
    assert Policy(retry=1).apply(max)([1, 3], default=0) == 3


def test_a_parameter_may_have_any_name() -> None:
    @opero(cache=True)
    def function(stats: int, holder: int, generated: int, MISS: int, Call: int, _pipeline: int, _call: int) -> int:  # noqa: N803
        return stats + holder + generated + MISS + Call + _pipeline + _call

    assert function(1, 2, 3, 4, 5, 6, 7) == 28
    assert function(stats=1, holder=2, generated=3, MISS=4, Call=5, _pipeline=6, _call=7) == 28
    assert function.stats.cache_hits == 1


def exact(received: list[Any], how: str) -> tuple[Any, dict[str, Any]]:
    """A function, and options with a function that receives the arguments of its calls."""

    def record(*args: Any, **kwargs: Any) -> Any:
        received.append((args, kwargs))
        return 1

    def function(a: int, b: int = 2) -> int:
        if how == "fallback":
            raise ConnectionError
        return a + b

    options = {
        "cache key": {"cache_key": record},
        "fallback": {"fallback": {"function": record}, "retries": 0},
        "cost": {"rate_limit": {"rate": 1000, "cost": record}},
    }
    return function, options[how]


@pytest.mark.parametrize("how", ["cache key", "fallback", "cost"])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_functions_of_a_policy_receive_the_arguments_as_the_caller_passed_them(
    how: str, is_late: bool, is_async: bool
) -> None:
    received: list[Any] = []
    function, options = exact(received, how)
    if is_async:
        sync = function

        async def function(a: int, b: int = 2) -> int:  # type: ignore[no-redef]
            return sync(a, b)  # type: ignore[no-any-return]

    policy = Policy.from_options(**options)
    bound: Any = policy.apply(function)
    if is_late:
        bound = opero(policy="api", registry=Registry({"api": policy}))(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(bound(*args, **kwargs)) if is_async else bound(*args, **kwargs)

    call(1)
    call(a=1)
    call(1, b=3)
    assert received == [((1,), {}), ((), {"a": 1}), ((1,), {"b": 3})]


@pytest.mark.parametrize("how", ["cache key", "fallback", "cost"])
def test_after_a_reload_too(how: str) -> None:
    received: list[Any] = []
    function, options = exact(received, how)
    registry = Registry({"api": Policy(retry=0)})
    bound: Any = registry.bind(function, "api")
    with contextlib.suppress(ConnectionError):
        bound(a=1)
    with registry.override(api=Policy.from_options(**options).fields()):
        bound(a=1)
        bound(1)
    with contextlib.suppress(ConnectionError):
        bound(a=1)
    assert received == [((), {"a": 1}), ((1,), {})]


def test_a_coroutine_that_was_made_before_a_reload_runs_on_the_policy_of_then() -> None:
    received: list[Any] = []

    def record(**kwargs: Any) -> Any:
        received.append(kwargs)
        return kwargs["a"]

    async def function(a: int) -> int:
        return a

    registry = Registry({"api": Policy(retry=0)})
    bound: Any = registry.bind(function, "api")

    async def run() -> None:
        assert await bound(a=0) == 0
        before = bound(a=1)
        with registry.override(api={"cache": {"key": record}}):
            assert await before == 1
            assert received == []
            assert await bound(a=2) == 2
            assert received == [{"a": 2}]

    asyncio.run(run())


def test_a_traceback_leads_from_the_call_to_the_function() -> None:
    @opero(retries=0)
    def fails(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(ValueError, match="1") as caught:
        fails(1)
    lines = traceback.format_exception(caught.value)
    assert any("raise ValueError(number)" in line for line in lines)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "fails"
    assert all("opero" in frame.filename for frame in frames[1:-1])


def test_a_function_below_another_decorator_receives_what_that_takes() -> None:
    def doubling(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) * 2

        return wrapper

    @opero
    @doubling
    def function(a: int, *, b: int = 1) -> int:
        return a + b

    assert function(1, b=2) == 6
    assert function(a=1) == 4


def test_a_function_that_traces_is_traced_as_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    @opero
    def function(number: int) -> int:
        doubled = number * 2
        return doubled + 1

    seen: list[tuple[str, str]] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is function.__wrapped__.__code__:
            seen.append((event, ",".join(sorted(frame.f_locals))))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(1)
    finally:
        sys.settrace(before)
    assert seen[0] == ("call", "number")
    assert seen[-1] == ("return", "doubled,number")
