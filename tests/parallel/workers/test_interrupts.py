"""Items that interrupt their own process, as home-made timeouts do, and Ctrl-C for the workers of executors."""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from opero import MapError, Policy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


def interrupt(how: str) -> None:
    if how == "interrupt_main":
        _thread.interrupt_main()
    elif how == "timer":
        timer = threading.Timer(0.05, _thread.interrupt_main)
        timer.start()
    elif how == "raise_signal":
        signal.raise_signal(signal.SIGINT)
    else:
        os.kill(os.getpid(), signal.SIGINT)


def note(number: int, folder: str) -> None:
    with Path(folder, "started").open("a") as file:
        file.write(f"{number} ")


def interrupted(number: int, how: str, folder: str) -> int:
    note(number, folder)
    if number == 3:
        interrupt(how)
        for _ in range(1500):
            time.sleep(0.01)
    return number


async def interrupted_async(number: int, how: str, folder: str) -> int:
    note(number, folder)
    if number == 3:
        interrupt("interrupt_main" if how == "timer" else how)
        for _ in range(1500):
            await asyncio.sleep(0.01)
    return number


def mapped(function: Any, kind: str, **options: Any) -> Any:
    executor = {"executor": lambda: ProcessPoolExecutor(2)} if kind == "executor" else {}
    mode = "process" if kind == "executor" else kind
    return Policy(parallel={"mode": mode, "workers": 2, "progress": False, **executor, **options}).apply(function)


def listed(result: Any) -> Any:
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("how", ["interrupt_main", "timer", "raise_signal", "kill"])
@pytest.mark.parametrize("kind", ["process", "async_process", "executor"])
def test_an_item_that_interrupts_its_process_fails_once(kind: str, how: str, tmp_path: Path) -> None:
    function = interrupted_async if kind == "async_process" else interrupted
    bound = mapped(function, kind, on_error="return")
    results = listed(bound.map(range(8), how, str(tmp_path)))
    failure = results.pop(3)
    assert results == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(failure, RuntimeError)
    assert isinstance(failure.__cause__, KeyboardInterrupt)
    assert (tmp_path / "started").read_text().split().count("3") == 1
    assert (bound.stats.calls, bound.stats.failures) == (8, 1)


def test_it_ends_the_map_as_any_other_failure_does(tmp_path: Path) -> None:
    with pytest.raises(MapError, match="item 3: RuntimeError: the item was interrupted"):
        mapped(interrupted, "process").map(range(8), "interrupt_main", str(tmp_path))


def own_timeout(number: int) -> str:
    """A home-made timeout that the item handles itself."""
    timer = threading.Timer(0.05, _thread.interrupt_main)
    timer.start()
    try:
        for _ in range(1500):
            time.sleep(0.01)
    except KeyboardInterrupt:
        return f"{number} took too long"
    return "it was not interrupted"


def test_an_item_can_handle_its_own_interrupt() -> None:
    assert mapped(own_timeout, "process").map(range(3)) == [f"{number} took too long" for number in range(3)]


def late(number: int) -> int:
    """Interrupt its process when it has ended: the timer of a home-made timeout that was not cancelled."""
    threading.Timer(0.001 * (number % 3), _thread.interrupt_main).start()
    return number


def test_an_interrupt_that_comes_too_late_loses_no_item() -> None:
    results = mapped(late, "process", on_error="return").map(range(200))
    assert len(results) == 200
    for number, result in enumerate(results):
        assert result == number or isinstance(result.__cause__, KeyboardInterrupt)


CTRL_C = """
    import os, signal, threading, time
    from concurrent.futures import ProcessPoolExecutor
    from opero import MapError, opmap

    def nap(number):
        if number:
            open(f"napping {number}", "w").close()
            time.sleep(60)
        return number

    if __name__ == "__main__":
        def ctrl_c():
            while not (os.path.exists("napping 1") and os.path.exists("napping 2")):
                time.sleep(0.01)
            os.killpg(0, signal.SIGINT)  # as a terminal does

        threading.Thread(target=ctrl_c, daemon=True).start()
        executor = {"executor": lambda: ProcessPoolExecutor(2)} if EXECUTOR else {}
        try:
            opmap(mode="process", workers=2, progress=False, retries=0, **executor)(nap)([0, 1, 2])
        except KeyboardInterrupt as error:
            print({1, 2} & set(error.__cause__.results), error.__cause__.failures)
"""


@pytest.mark.parametrize("executor", [True, False])
def test_items_that_ctrl_c_interrupts_have_not_failed(executor: bool, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(CTRL_C).replace("EXECUTOR", str(executor)))
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )
    assert done.stdout == "set() ()\n", done.stderr
