"""What the traceback of a failed map shows, and what it keeps alive, in every mode."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from opero import AllFailedError, MapError, opmap
from opero.runtime.tracebacks import OWN

MODES = ("auto", "thread", "process", "async", "async_process")
ITEMS = [1, 0, 2]


def divide(by: int) -> float:
    return 1 / by


async def divide_async(by: int) -> float:
    return 1 / by


def divide_all(by: list[int]) -> list[float]:
    return [divide(each) for each in by] if min(by) else [1 / min(by)]


def mapped(mode: str, function: Any = None, **options: Any) -> Any:
    function = function or (divide_async if "async" in mode else divide)
    return opmap(**{"mode": mode, "workers": 2, "retries": 2, "min_delay": 0, "retry_on": Exception, **options})(
        function
    )


def failure(function: Any, how: str = "list", **options: Any) -> Exception:
    """Return the exception that ends a map."""
    try:
        if how == "stream":
            list(function.stream(ITEMS, **options))
        else:
            function.map(ITEMS, **options)
    except Exception as error:
        return error
    raise AssertionError


async def failure_async(function: Any, how: str = "list", **options: Any) -> Exception:
    try:
        if how == "stream":
            async for _ in function.stream(ITEMS, **options):
                pass
        else:
            await function.map(ITEMS, **options)
    except Exception as error:
        return error
    raise AssertionError


def fail(function: Any, how: str = "list", **options: Any) -> Exception:
    if asyncio.iscoroutinefunction(function.__wrapped__):
        return asyncio.run(failure_async(function, how, **options))
    return failure(function, how, **options)


def lines(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def check(error: BaseException) -> None:
    shown = lines(error)
    text = "\n".join(shown)
    assert len(shown) <= 30, text
    assert f'"{OWN}' not in text
    assert "During handling" not in text
    assert text.count(f'File "{__file__}"') == 5, text  # the caller, the cause, each attempt


@pytest.mark.parametrize("how", ["list", "stream"])
@pytest.mark.parametrize("mode", MODES)
def test_it_has_the_users_frames_and_a_line_for_each_attempt(mode: str, how: str) -> None:
    error = fail(mapped(mode), how)
    assert isinstance(error, MapError)
    check(error)
    [item] = error.exceptions
    assert isinstance(item, AllFailedError)
    assert [frame.name for frame in traceback.extract_tb(item.errors[-1].__traceback__)] == [
        "divide_async" if "async" in mode else "divide"
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"attempt_timeout": 30, "timeout": 60, "circuit_breaker": 50, "rate_limit": 1000, "bulkhead": 5},
        {"max_failures": 0},
        {"cache_ttl": 60},
        {"fallback": {"default": 0, "on": [KeyError]}},
    ],
    ids=["one worker", "many policies", "max_failures", "a cache", "a fallback"],
)
@pytest.mark.parametrize("mode", ["thread", "process", "async"])
def test_it_is_as_short_under_other_policies(mode: str, options: Any) -> None:
    check(fail(mapped(mode, **options)))


@pytest.mark.parametrize("mode", ["thread", "process", "async"])
def test_it_is_as_short_with_a_journal(mode: str, tmp_path: Path) -> None:
    check(fail(mapped(mode), journal=tmp_path / "journal"))


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_it_is_as_short_for_batches(mode: str) -> None:
    error: Any = fail(mapped(mode, divide_all, batch_size=3))
    assert len(error.failures) == 3
    assert len(error.exceptions) == 1
    check(error)


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_in_place_of_a_result_has_only_the_users_frames(mode: str) -> None:
    async def main() -> Any:
        return await function.map(ITEMS)

    function = mapped(mode, on_error="return")
    results = asyncio.run(main()) if "async" in mode else function.map(ITEMS)
    shown = lines(results[1])
    assert len(shown) <= 25
    assert not any(f'"{OWN}' in line for line in shown)
    [error] = mapped(mode, on_error="return", retries=0).map([0]) if "async" not in mode else [results[1].errors[-1]]
    assert len(lines(error)) <= 5
    assert OWN not in "\n".join(lines(error))


def test_a_retry_of_what_failed_shows_the_users_frames() -> None:
    error: Any = fail(mapped("thread"))
    again = failure_of_retry(error)
    assert isinstance(again, MapError)
    assert len(lines(again)) <= 30
    assert f'"{OWN}' not in "\n".join(lines(again))


def failure_of_retry(error: MapError) -> Exception:
    try:
        error.retry_failed()
    except MapError as again:
        return again
    raise AssertionError


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_why_a_map_was_ended_is_shown_once(mode: str) -> None:
    error: Any = fail(mapped(mode, wait, deadline=0.2, retries=0))
    assert isinstance(error, MapError)
    assert error.reason is not None
    assert "\n".join(lines(error)).count(f"CallTimeoutError: {error.reason}") == 1


def wait(seconds: float) -> None:
    time.sleep(seconds)


def test_causes_and_groups_of_a_worker_have_their_lines() -> None:
    def chained(_: int) -> None:
        try:
            divide(0)
        except ZeroDivisionError as error:
            raise ExceptionGroup("all", [ValueError(1), LookupError(2)]) from error

    def names(error: BaseException | None) -> list[str]:
        assert error is not None
        return [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    [error] = mapped("process", chained, retries=0, on_error="return").map([1])
    assert names(error) == ["chained"]
    assert names(error.__cause__) == ["chained", "divide"]
    [error] = mapped("process", chained, retries=1, on_error="return").map([1])
    assert names(error.errors[-1]) == ["chained"]
    assert names(error.errors[-1].__cause__) == ["chained", "divide"]


def test_a_function_of_a_script_is_shown_with_its_file_and_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from opero import opmap

            @opmap(mode="process", workers=2, retries=1, min_delay=0, retry_on=Exception)
            def divide(by: int) -> float:
                return 1 / by

            if __name__ == "__main__":
                divide([1, 0])
            """
        )
    )
    program = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert program.stderr.count(f'File "{script}", line 6, in divide') == 3
    assert program.stderr.count("return 1 / by") == 2
    assert len(program.stderr.splitlines()) <= 30


@pytest.mark.parametrize("mode", ["thread", "auto"])
def test_the_frames_of_earlier_attempts_are_freed(mode: str) -> None:
    def hold(_: int) -> None:
        data = bytearray(5_000_000)
        raise OSError(len(data))

    function = mapped(mode, hold, retries=20, workers=1)
    tracemalloc.start()
    with pytest.raises(MapError):
        function.map([1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15_000_000


def test_a_bug_in_opero_keeps_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    import opero.parallel.engine.results as results

    monkeypatch.setattr(results.Results, "all", lambda self: 1 / 0)
    error = failure(mapped("thread"))
    assert isinstance(error, ZeroDivisionError)
    assert os.path.basename(__file__) in "\n".join(lines(error))


# Ctrl-C

PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from opero import opmap

async def nap(number: int) -> int:
    Path("running").touch()
    await asyncio.sleep(0.05)
    return number

def nap_blocking(number: int) -> int:
    Path("running").touch()
    time.sleep(0.05)
    return number

async def main(mapped) -> None:
    await mapped.map(range(100_000), **options)

if __name__ == "__main__":
    mode, options = sys.argv[1], {"journal": sys.argv[2]} if len(sys.argv) > 2 else {}
    mapped = opmap(mode=mode, workers=3)(nap if "async" in mode else nap_blocking)
    if "async" in mode:
        asyncio.run(main(mapped))
    else:
        mapped(range(100_000), **options)
"""


def interrupted(folder: Path, mode: str, *arguments: str) -> str:
    """Run the program, send Ctrl-C to it and its workers as a terminal does, and return what it printed."""
    (folder / "program.py").write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, "program.py", mode, *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        give_up = time.monotonic() + 60
        while not (folder / "running").exists():
            assert program.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.01)
        os.killpg(program.pid, signal.SIGINT)
        return program.communicate(timeout=60)[1]
    finally:
        program.kill()
        program.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="signals as a terminal sends them")
@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_prints_one_summary_and_how_to_resume(mode: str, tmp_path: Path) -> None:
    shown = interrupted(tmp_path, mode, "items.journal")
    assert shown.count("opero.errors.MapError: nap") == 1
    assert "of 100000 items failed" in shown
    assert "to resume, map the same items again with journal='items.journal'" in shown
    assert shown.splitlines()[-1] == "KeyboardInterrupt"
    assert f'"{OWN}' not in shown
    assert shown.count("Traceback") == (2 if "async" in mode else 1)  # asyncio shows the cancelled task as well
    # In mode "auto" the function may be interrupted itself.
    assert len(shown.splitlines()) <= (40 if "async" in mode else 15), shown  # Python 3.13 marks more lines


@pytest.mark.skipif(sys.platform == "win32", reason="signals as a terminal sends them")
def test_ctrl_c_without_a_journal_says_what_it_would_do(tmp_path: Path) -> None:
    shown = interrupted(tmp_path, "thread")
    assert "ended by KeyboardInterrupt; with a journal (journal=PATH) the next run would resume" in shown
