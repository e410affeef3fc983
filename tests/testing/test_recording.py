"""Recordings: what attempts came to is written, and bound functions go through it again without being called."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from opero import AllFailedError, ConfigError, FailedResponseError, opero, trace
from opero.runtime.clock import default_clock
from opero.testing import (
    ReplayError,
    Response,
    faults,
    no_waits,
    record,
    replay,
    slow,
    status,
    virtual_clock,
)

calls: list[Any] = []
script: list[Any] = []


def play(argument: Any) -> Any:
    calls.append(argument)
    step = script.pop(0)
    if isinstance(step, BaseException):
        raise step
    if step == "hang":
        default_clock().sleep(3600)
    return step


@opero(retries=4, min_delay=5, backoff_factor=1, jitter=False, timeout={"attempt": 60})
def fetch(user: str) -> Any:
    return play(user)


@opero(retries=2, min_delay=1, backoff_factor=1, jitter=False)
async def fetch_async(user: str) -> Any:
    await asyncio.sleep(0)
    return play(user)


@opero(retries=0)
def other() -> str:
    calls.append("other")
    return "real"


@opero(retries=0, fallback={"default": "old", "on": [Exception]})
def with_fallback() -> str:
    return "real"


class Client:
    @opero(retries=1, min_delay=1, jitter=False)
    def get(self, name: str) -> Any:
        return play(name)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    calls.clear()
    script.clear()
    yield
    script.clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fixtures" / "outage.json"


def recorded(file: Path, name: str) -> list[Any]:
    return list(json.loads(file.read_text())["functions"][f"{__name__}:{name}"])


class ResponseError(Exception):
    def __init__(self, response: Any) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.response = response


class CodedError(Exception):
    def __init__(self, response: Any, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.response = response


def outage() -> list[Any]:
    cause = RuntimeError("pool")
    cause.__cause__ = ConnectionRefusedError(111, "refused")
    return [
        ConnectionResetError(104, "reset"),
        ResponseError(status(503, retry_after=30)),
        cause,
        CodedError(status(429, retry_after=7), code=3),
        {"name": "ada"},
    ]


@pytest.mark.parametrize("function", [fetch, fetch_async])
def test_a_replay_goes_through_what_was_recorded_without_a_call(file: Path, function: Any) -> None:
    def call() -> Any:
        found = function("ada")
        return asyncio.run(found) if asyncio.iscoroutine(found) else found

    steps = outage() if function is fetch else [TimeoutError("late"), status(500), 5]
    script[:] = steps
    with virtual_clock() as clock, record(file, results=True), trace() as before:
        result, slept = call(), [each for each in clock.slept if each >= 1]
    assert len(calls) == len(steps)
    with virtual_clock() as clock, replay(file) as left, trace() as after:
        assert call() == result
        assert [each for each in clock.slept if each >= 1] == slept
    assert (len(calls), left.remaining) == (len(steps), {})
    kinds = [[each.details["kind"] for each in receipt.calls[0].attempts] for receipt in (before, after)]
    assert kinds[0] == kinds[1]
    assert [each.event for each in before.calls[0].steps] == [each.event for each in after.calls[0].steps]


def test_the_file_has_types_kinds_statuses_and_waits_but_no_arguments(file: Path) -> None:
    script[:] = [*outage()[:2], ConnectionError("redis://user:hunter2@host/0\nis down"), status(204), status(200)]
    with no_waits(), record(file):
        fetch("argument")
        fetch("argument")
    first, second, third, fourth, fifth = recorded(file, "fetch")
    told = first["raised"]
    assert (told["type"], told["args"], told["kind"]) == ("builtins:ConnectionResetError", [104, "reset"], "transient")
    assert [second["raised"][name] for name in ("status", "kind", "retry_in")] == [503, "throttled", 30.0]
    assert third["raised"]["text"] == "redis://**********@host/0 is down"
    assert fourth["response"] == {"status": 204, "retry_in": None}
    assert fifth["seconds"] >= 0
    assert "hunter2" not in file.read_text()
    assert "argument" not in file.read_text()


def test_results_are_written_where_asked_only(file: Path) -> None:
    script[:] = [{"a": 1}, "secret"]
    with record(file, results=[fetch]):
        fetch("a")
        asyncio.run(fetch_async("b"))
    assert recorded(file, "fetch")[0]["result"] == {"a": 1}
    assert recorded(file, "fetch_async")[0]["returned"] == "str"
    assert "secret" not in file.read_text()
    with replay(file, results={fetch_async: "given"}):
        assert fetch("a") == {"a": 1}
        assert asyncio.run(fetch_async("b")) == "given"
    missing = "the result of attempt 1 of .*:fetch_async is not in it: record it"
    with pytest.raises(ReplayError, match=missing), replay(file):
        asyncio.run(fetch_async("b"))


def test_a_result_that_is_no_json_is_an_error_and_nothing_is_written(file: Path) -> None:
    script[:] = [{1, 2}]
    problem = "fetch returned a set that JSON cannot represent; leave it out of results"
    with pytest.raises(ConfigError, match=problem), record(file, results=True):
        fetch("a")
    assert not file.exists()


def test_an_attempt_that_a_timeout_interrupted_is_interrupted_again(file: Path) -> None:
    script[:] = ["hang", 1]
    with virtual_clock(), record(file, results=True):
        assert fetch("a") == 1
    assert recorded(file, "fetch")[0]["interrupted"] is True
    with virtual_clock() as clock, replay(file), trace() as receipt:
        assert fetch("a") == 1
        assert clock.now > 60
    assert [each.event for each in receipt.calls[0].steps][:2] == ["timed_out", "attempt_failed"]


def test_an_attempt_that_is_not_interrupted_again_is_a_mismatch(file: Path) -> None:
    script[:] = ["hang"]

    async def main() -> None:
        task = asyncio.ensure_future(slept("a"))
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @opero(retries=0)
    async def slept(user: str) -> None:
        await asyncio.sleep(3600)

    with virtual_clock() as clock, record(file):
        clock.run(main())
    with virtual_clock() as clock, replay(file):
        clock.run(main())
    late = pytest.raises(ReplayError, match="was interrupted after 2 s, and this one is not")
    with late, virtual_clock() as clock, replay(file):
        clock.run(slept("a"))


def test_methods_and_failures_for_good_are_replayed(file: Path) -> None:
    script[:] = [ConnectionError("one"), ConnectionError("two")]
    with no_waits(), record(file), pytest.raises(AllFailedError):
        Client().get("a")
    with no_waits(), replay(file), pytest.raises(AllFailedError) as caught:
        Client().get("a")
    assert [str(each) for each in caught.value.errors] == ["one", "two"]


@opero(retries=0)
def through() -> Any:
    return fetch("inner")


def test_a_function_that_calls_another_is_replayed_without_it(file: Path) -> None:
    script[:] = [ConnectionError("one")] * 5
    with no_waits(), record(file), pytest.raises(AllFailedError):
        through()
    with no_waits(), replay(file) as left, pytest.raises(AllFailedError) as caught:
        through()
    assert [type(each) for each in caught.value.errors] == [ConnectionError] * 5
    assert (len(calls), left.remaining) == (5, {f"{__name__}:fetch": 5})


def test_a_response_is_replayed_as_one(file: Path) -> None:
    script[:] = [status(404)]
    with record(file):
        assert fetch("a").status_code == 404
    with replay(file), trace() as receipt:
        found = fetch("a")
    assert isinstance(found, Response)
    assert found.status_code == 404
    assert receipt.calls[0].error["type"] == FailedResponseError.__name__  # type: ignore[index]


# What does not fit


def one_success(file: Path) -> None:
    script[:] = [1]
    with record(file, results=True):
        fetch("a")


def test_more_attempts_than_recorded_are_an_error(file: Path) -> None:
    one_success(file)
    with pytest.raises(ReplayError, match=r"there are no more than 1 attempt of .*:fetch"), replay(file):
        assert [fetch("a"), fetch("a")] == []
    assert len(calls) == 1


def test_another_function_is_an_error_and_is_not_called(file: Path) -> None:
    one_success(file)
    with pytest.raises(ReplayError, match=r"no attempts of .*:other were recorded"), replay(file):
        other()
    assert "other" not in calls


def test_an_error_that_a_policy_swallows_is_raised_at_the_end(file: Path) -> None:
    one_success(file)
    with pytest.raises(ReplayError, match="with_fallback"), replay(file):
        assert with_fallback() == "old"
    with pytest.raises(ValueError, match="of the test") as caught, replay(file):
        raise ValueError("of the test", with_fallback())
    assert "with_fallback" in caught.value.__notes__[0]


@pytest.mark.parametrize("by", [record, replay])
def test_calls_that_pass_by_are_an_error(file: Path, by: Callable[..., Any]) -> None:
    one_success(file)

    @opero(retries=0)
    def items() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="items passed by, as it is a generator"), by(file):
        list(items())
    script[:] = [1]
    kept = []  # otherwise it would be gone by the end
    with pytest.raises(ConfigError, match="play passed by, as it was bound within the block"), by(file):
        kept.append((bound := opero(retries=0)(play), bound("a")))


def test_functions_are_themselves_again_afterwards(file: Path) -> None:
    one_success(file)
    for block in (record(file), replay(file)):
        with pytest.raises(ZeroDivisionError), block:
            raise ZeroDivisionError
    assert other() == "real"


def test_blocks_may_be_nested(file: Path) -> None:
    with no_waits(), faults(fetch, [ConnectionError("scripted"), slow("1s")]), record(file, results=True):
        script[:] = [1]
        assert fetch("a") == 1
    assert [each.get("raised", {}).get("text") for each in recorded(file, "fetch")] == ["scripted", None]


def test_threads_share_a_replay(file: Path) -> None:
    script[:] = [1] * 8
    with record(file, results=True):
        for _ in range(8):
            fetch("a")
    found: list[int] = []
    with replay(file) as left:
        threads = [threading.Thread(target=lambda: found.append(fetch("a"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (found, left.remaining) == ([1] * 8, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; record"),
        ("{", "is not JSON"),
        ("[]", "is not a recording of format 1"),
        ('{"format": 2, "functions": {}}', "is not a recording of format 1"),
        ('{"format": 1, "functions": {"a:b": []}}', "a:b is not bound"),
    ],
)
def test_a_wrong_file_is_refused(file: Path, text: str | None, message: str) -> None:
    file.parent.mkdir()
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message), replay(file):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "builtins:NoError"}, "fetch, attempt 1: there is no exception builtins:NoError"),
        ({"type": "builtins:print"}, "there is no exception builtins:print"),
        ({"kind": "denied"}, r"was denied \(None\), and is transient \(None\) when made again; use faults"),
        ({"type": "builtins:UnicodeDecodeError", "args": ["x"]}, "UnicodeDecodeError"),
    ],
)
def test_an_exception_that_cannot_be_made_again_is_told_at_the_beginning(file: Path, change: Any, message: str) -> None:
    script[:] = [ConnectionError("a")] * 5
    with no_waits(), record(file), pytest.raises(AllFailedError):
        fetch("a")
    data = json.loads(file.read_text())
    data["functions"][f"{__name__}:fetch"][0]["raised"] |= change
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=message), replay(file):
        raise AssertionError("the block is not entered")


def test_an_exception_without_a_name_is_not_recorded(file: Path) -> None:
    class LocalError(Exception):
        pass

    script[:] = [LocalError()] * 5
    refused = pytest.raises(ConfigError, match="LocalError, which cannot be imported")
    with refused, no_waits(), record(file), suppress(AllFailedError):
        fetch("a")
    assert not file.exists()


def test_what_is_not_bound_is_refused(file: Path) -> None:
    one_success(file)
    with pytest.raises(ConfigError, match=r"record\(\) expects a bound function"), record(file, results=[len]):
        pass
    with pytest.raises(ConfigError, match=r"replay\(\) expects a bound function"), replay(file, results={len: 1}):
        pass
    with pytest.raises(ConfigError, match="app:none is not bound"), replay(file, results={"app:none": 1}):
        pass
