"""Retries: which errors, with which delays, and the final error. Every test runs for sync and async callers."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import gc
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from executors.steady import steady
from opero import AllFailedError, CircuitOpenError, Policy, ResultRejectedError, opero
from opero.executors.given_up import give_up
from opero.failures import failure_of
from opero.testing import VirtualClock

ERROR = ConnectionError("down")
PLAIN = {"jitter": False, "min_delay": 1, "backoff_factor": 2}


def test_delays_grow_by_the_factor_up_to_max_delay(bind: Any, script: Any) -> None:
    call = bind(Policy(retry={**PLAIN, "retries": 5, "max_delay": 6}), script(ERROR))
    with pytest.raises(AllFailedError):
        call()
    assert bind.slept == [1, 2, 4, 6, 6]


def test_jitter_uses_the_random_generator_of_the_clock(bind: Any, script: Any) -> None:
    call = bind(Policy(retry={"retries": 6, "min_delay": 1}), script(ERROR))
    with pytest.raises(AllFailedError):
        call()
    chance = VirtualClock().random
    assert bind.slept == pytest.approx([1.5**number * chance.random() for number in range(1, 7)])


def test_a_delay_of_zero_does_not_sleep(bind: Any, script: Any) -> None:
    assert bind(Policy(retry={"min_delay": 0, "max_delay": 0}), script(ERROR, ERROR, 7))() == 7
    assert bind.slept == []
    assert bind.bound.stats.retries == 2


def test_the_error_contains_all_attempts_in_order_and_the_last_is_the_cause(bind: Any, script: Any) -> None:
    errors = [ConnectionError(number) for number in range(3)]
    with pytest.raises(AllFailedError, match="all 3 attempts failed.*last error: ConnectionError: 2") as caught:
        bind(Policy(retry=2), script(*errors))()
    assert caught.value.errors == tuple(errors)
    assert caught.value.__cause__ is errors[-1]
    assert [str(each) for each in pickle.loads(pickle.dumps(caught.value)).errors] == ["0", "1", "2"]
    try:
        raise caught.value
    except* ConnectionError as group:
        assert group.exceptions == tuple(errors)
    assert bind.bound.stats.errors == {"ConnectionError": 3}
    assert bind.bound.stats.failures == 1


def test_the_error_says_the_kinds_of_the_failures(bind: Any, script: Any) -> None:
    def failed(*outcomes: Any, **retry: Any) -> AllFailedError:
        call = bind(Policy(retry={"retries": len(outcomes) - 1, "min_delay": 0, **retry}), script(*outcomes))
        with pytest.raises(AllFailedError) as caught:
            call()
        return caught.value

    error = failed(ConnectionError(1), TimeoutError(2))
    assert error.kinds == ("transient", "transient")
    assert str(error).endswith(": all 2 attempts failed in 2 rounds (transient); last error: TimeoutError: 2")
    error = failed(ConnectionError(1), ValueError(2), OSError(3), KeyError("x" * 1000), retry_on=Exception)
    assert error.kinds == ("transient", "unknown", "unknown", "permanent")
    assert "(1 transient, 2 unknown, 1 permanent); last error: KeyError: 'xxx" in str(error)
    assert len(str(error)) < 450
    assert pickle.loads(pickle.dumps(error)).kinds == error.kinds
    assert error.split(OSError)[0].kinds == ("transient", "unknown")


def test_the_error_says_the_kind_of_each_values_last_failure(bind: Any) -> None:
    def lookup(key: str) -> Any:
        raise {"a": PermissionError, "b": ConnectionError, "c": ValueError}[key](key)

    policy = Policy(retry={"retries": 1, "min_delay": 0}, fallback={"arg": "key"})
    with pytest.raises(AllFailedError) as caught:
        bind(policy, lookup)(["a", "b", "c"])
    assert len(caught.value.kinds) == len(caught.value.errors)
    assert f"; the values of key, in the order tried: {caught.value.kinds[0]}, transient, unknown)" in str(caught.value)


def test_reraise_raises_the_last_exception_itself(bind: Any, script: Any) -> None:
    with pytest.raises(ConnectionError) as caught:
        bind(Policy(retry={"retries": 1, "reraise": True}), script(ValueError(), ERROR))()
    assert caught.value is ERROR


@pytest.mark.parametrize("policy", [{"retries": 0}, {"retry_on": KeyError}])
def test_a_single_attempt_raises_its_own_exception(bind: Any, script: Any, policy: Any) -> None:
    with pytest.raises(ConnectionError) as caught:
        bind(Policy(retry=policy), script(ERROR))()
    assert caught.value is ERROR


def test_an_exception_outside_retry_on_is_raised_unchanged_even_after_retries(bind: Any, script: Any) -> None:
    last = ValueError("no")
    function = script(ERROR, last)
    with pytest.raises(ValueError, match="no") as caught:
        bind(Policy(retry={"retry_on": ConnectionError}), function)()
    assert caught.value is last
    assert len(function.calls) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_a_base_exception_is_never_retried(bind: Any, script: Any, error: BaseException) -> None:
    function = script(error, 1)
    with pytest.raises(type(error)):
        bind(Policy(retry=3, circuit_breaker=1), function)()
    assert len(function.calls) == 1


def test_rejected_results_are_retried(bind: Any, script: Any) -> None:
    policy = Policy(retry={"retries": 2, "retry_if_result": lambda result: result is None})
    assert bind(policy, script(None, None, 5))() == 5
    with pytest.raises(AllFailedError) as caught:
        bind(policy, script(None))()
    assert [type(each) for each in caught.value.errors] == [ResultRejectedError] * 3


@pytest.mark.parametrize("options", [{"retries": 0}, {"retries": 2, "reraise": True}])
def test_a_rejected_result_is_returned_with_reraise_or_a_single_attempt(bind: Any, script: Any, options: Any) -> None:
    policy = Policy(retry={**options, "retry_if_result": lambda result: not result})
    assert bind(policy, script(0))() == 0


def test_an_open_circuit_is_not_retried(bind: Any, script: Any) -> None:
    function = script(ERROR)
    call = bind(Policy(retry={"retries": 9, **PLAIN}, circuit_breaker=1), function)
    with pytest.raises(CircuitOpenError) as caught:
        call()
    assert len(function.calls) == 1
    assert caught.value.__cause__ is ERROR
    before = list(bind.slept)
    with pytest.raises(CircuitOpenError):
        call()
    assert (len(function.calls), bind.slept) == (1, before)
    assert bind.bound.stats.rejections == 2


def test_an_open_circuit_in_retry_on_is_waited_for(bind: Any, script: Any) -> None:
    policy = Policy(
        retry={"retries": 2, "retry_on": (ConnectionError, CircuitOpenError), "max_delay": 60, **PLAIN},
        circuit_breaker={"consecutive_failures": 1, "open_for": 20},
    )
    steady(bind.clock)
    assert bind(policy, script(ERROR, 5))() == 5
    assert bind.slept == [1, 19]


def test_a_stop_iteration_of_the_function_is_raised_unchanged(script: Any) -> None:
    bound = Policy(retry={"retries": 1, "reraise": True}).apply(script(StopIteration(4)), clock=VirtualClock())
    with pytest.raises(StopIteration) as caught:
        bound()
    assert caught.value.value == 4


class Tracked(Exception):  # noqa: N818
    """An exception that records which instances are alive."""

    alive: list[weakref.ref[Tracked]] = []

    def __init__(self) -> None:
        self.alive.append(weakref.ref(self))

    @classmethod
    def survivors(cls) -> int:
        return sum(each() is not None for each in cls.alive)


@pytest.fixture
def no_collector() -> Iterator[None]:
    Tracked.alive.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("kinds", [{}, {"circuit_breaker": 9, "timeout": 100}, {"fallback": {"arg": "key"}}])
@pytest.mark.parametrize("reraise", [False, True])
def test_a_failed_call_creates_no_reference_cycle(bind: Any, retries: int, kinds: Any, reraise: bool) -> None:
    def function(key: Any = None) -> None:
        raise Tracked

    bind(Policy(retry={"retries": retries, "reraise": reraise}, **kinds), function)

    async def call_async() -> int:
        with contextlib.suppress(Exception):
            await bind.bound()
        return Tracked.survivors()  # inside the task, as the event loop keeps a task's exception a little longer

    def call() -> int:
        with contextlib.suppress(Exception):
            bind.bound()
        return Tracked.survivors()

    assert (call() if bind.kind == "sync" else bind.clock.run(call_async())) == 0


@pytest.mark.usefixtures("no_collector")
def test_a_recovered_call_creates_no_reference_cycle(bind: Any) -> None:
    def function() -> int:
        if len(Tracked.alive) < 2:
            raise Tracked
        return 1

    assert bind(Policy(retry=3), function)() == 1
    assert Tracked.survivors() == 0


def builtin_errors() -> list[Exception]:
    """An instance of each builtin exception that can be made without arguments, and some that say more."""
    found: list[Exception] = []
    for each in vars(builtins).values():
        if isinstance(each, type) and issubclass(each, Exception):
            with contextlib.suppress(TypeError):
                found.append(each())
    marked, caused, failed = ConnectionError(), ConnectionError(), OSError("HTTP")
    give_up(marked)
    caused.__cause__ = marked
    failed.status = 404  # type: ignore[attr-defined]
    group = ExceptionGroup("several", [marked])
    return [*found, marked, caused, failed, group, OSError(errno.ECONNREFUSED, "refused"), KeyError("a")]


@pytest.mark.parametrize("policy", [{}, {"retry_on": "unknown"}, {"retry_on_status": [404]}, {"retry_on": OSError}])
@pytest.mark.parametrize("error", builtin_errors(), ids=repr)
def test_a_bare_builtin_exception_is_judged_by_its_kind_and_class_alone(policy: Any, error: Exception) -> None:
    rounds = opero(**policy)(lambda: None).binding.resolved().executors["retry"]
    for _ in range(2):  # the second time, its class may be known
        failure = failure_of(error)
        if failure.is_bare:
            assert rounds.is_retryable(error, None, failure.kind) == rounds.is_meant(error, None, failure.kind)
            assert failure.status is None
    says_more = error.__dict__ or error.__cause__ or (isinstance(error, OSError | ExceptionGroup) and error.args)
    assert failure_of(error).is_bare is not bool(says_more)
