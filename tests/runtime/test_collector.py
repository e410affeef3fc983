"""Python's garbage collector is paused while a configuration is loaded, and only then."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from opero import ConfigError, Registry
from opero.runtime.collector import without_collector


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


@without_collector
def is_enabled() -> bool:
    return gc.isenabled()


def test_it_is_paused_while_the_function_runs() -> None:
    assert not is_enabled()
    assert gc.isenabled()


def test_it_is_resumed_after_an_exception() -> None:
    @without_collector
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert gc.isenabled()


def test_a_program_that_has_disabled_it_keeps_it_disabled() -> None:
    gc.disable()
    assert not is_enabled()
    assert not gc.isenabled()


def test_the_last_of_two_threads_leaves_it_enabled() -> None:
    entered, leave = threading.Event(), threading.Event()

    @without_collector
    def wait() -> None:
        entered.set()
        leave.wait(30)

    thread = threading.Thread(target=wait)
    thread.start()
    assert entered.wait(30)
    assert not is_enabled()
    assert not gc.isenabled()  # the other thread still pauses it
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_a_load_pauses_it_and_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seen_while_loading.py").write_text(
        "import gc\nENABLED = gc.isenabled()\nclass Error(Exception): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base.yaml").write_text("policies: {api: {retry: {retry_on: [seen_while_loading.Error]}}}")
    registry = Registry.load(tmp_path, "development", {})
    assert not sys.modules.pop("seen_while_loading").ENABLED
    assert gc.isenabled()

    (tmp_path / "base.yaml").write_text("policies: {api: {retry: {retries: -1}}}")
    with pytest.raises(ConfigError):
        registry.reload()
    assert gc.isenabled()


PROGRAM = """
import gc, os, threading
from opero.runtime.collector import without_collector

entered, leave = threading.Event(), threading.Event()

@without_collector
def wait():
    entered.set()
    leave.wait(30)

thread = threading.Thread(target=wait)
thread.start()
entered.wait(30)
child = os.fork()
if not child:
    os._exit(0 if gc.isenabled() else 1)
is_wrong = os.waitpid(child, 0)[1] or gc.isenabled()
leave.set()
thread.join()
raise SystemExit(1 if is_wrong or not gc.isenabled() else 0)
"""


FREEZING = """
import gc
from opero.runtime.collector import without_collector

make = without_collector(lambda: [[] for _ in range(60_000)])
frozen = gc.get_freeze_count()
made = make()
assert gc.get_freeze_count() <= frozen
assert any(each is made for each in gc.get_objects(generation=2))
gc.freeze()
frozen = gc.get_freeze_count()
more = make()
assert gc.get_freeze_count() >= frozen - 10
assert not any(each is more for each in gc.get_objects(generation=2))
"""


def test_what_was_made_counts_as_old_unless_the_program_has_frozen_objects() -> None:
    subprocess.run([sys.executable, "-c", FREEZING], check=True, timeout=60)  # pytest's own process has frozen objects


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_that_is_forked_meanwhile_has_it_enabled() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=True, timeout=60)


BINDING = """
import gc
from opero import opero
from opero.binding.binding import Binding

def function():
    return lambda x: x

full = []
kept = [opero(function())]
gc.collect()
gc.callbacks.append(lambda phase, info: full.append(phase) if info["generation"] == 2 else None)
{code}
"""


def binding(code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", BINDING.format(code=code)], capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout.strip()


def test_many_functions_are_bound_without_a_collection_of_everything() -> None:
    assert binding("kept += [opero(function()) for _ in range(6000)]\nprint(len(full))") == "0"


def test_bound_functions_that_nobody_keeps_are_collected() -> None:
    alive = "sum(type(each) is Binding for each in gc.get_objects())"
    alive_at_most = int(binding(f"most = 0\nfor _ in range(40):\n    for _ in range(250): opero(function())\n"
                                f"    most = max(most, {alive})\nprint(most)"))  # fmt: skip
    assert alive_at_most < 1500


def test_what_the_program_has_frozen_stays_so_while_functions_are_bound() -> None:
    code = "gc.freeze()\nbefore = gc.get_freeze_count()\nkept += [opero(function()) for _ in range(600)]\n"
    assert binding(f"{code}print(before - gc.get_freeze_count())") == "0"
