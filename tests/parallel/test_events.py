"""Events of maps: of their items and workers, in every mode, delivered in the process that runs the map."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from opero import MapError, Policy, Registry, WorkerDiedError, on, opmap
from opero.events import AttemptFailed, CallFailed, CallSucceeded
from opero.failures import Kind
from opero.parallel.transport.context import handle_records

MODES = ["thread", "process"]
POLICY: dict[str, Any] = {"retry": {"retries": 1, "min_delay": 0, "retry_on": ["transient"]}}


class InconvenientError(Exception):
    """Its constructor takes other arguments than those that pickling passes to it."""

    def __init__(self, place: str, *, number: int) -> None:
        super().__init__(f"{place} {number}")
        self.lock = threading.Lock()


def work(item: int) -> int:
    if item == 3:
        raise ConnectionError("three")
    return item * 10


async def work_async(item: int) -> int:
    return work(item)


def inconvenient(item: int) -> int:
    raise InconvenientError("place", number=item)


def died(item: int) -> int:
    if item == 1:
        os._exit(3)
    return item


def run(mode: str, items: Any, **policy: Any) -> Any:
    parallel = {"mode": mode, "workers": 2, "on_error": "return"}
    if mode == "async":
        bound = Policy(**POLICY, **policy, parallel=parallel | {"mode": "auto"}).apply(work_async)
        return asyncio.run(bound.map(items))
    return Policy(**POLICY, **policy, parallel=parallel).apply(work).map(items)


@pytest.mark.parametrize("mode", [*MODES, "async"])
def test_a_map_tells_what_happens_to_its_items(mode: str, heard: list[Any]) -> None:
    results = run(mode, [1, 2, 3, 4])
    assert [results[0], results[1], results[3]] == [10, 20, 40]
    counts = Counter(event.name for event in heard)
    assert counts.pop("map_progressed") > 0
    assert counts == {
        "map_started": 1,
        "call_succeeded": 3,
        "attempt_failed": 2,
        "retry_scheduled": 1,
        "call_failed": 1,
        "map_item_failed": 1,
        "map_finished": 1,
    }
    name = f"{__name__}:{'work_async' if mode == 'async' else 'work'}"
    assert {(event.function, event.policy) for event in heard} == {(name, "")}
    by_name = {event.name: event for event in heard}
    assert (heard[0].name, heard[0].total) == ("map_started", 4)
    assert heard[0].mode == mode
    assert heard[-1].name == "map_finished"
    assert heard[-1].error is None
    assert (heard[-1].progress.done, heard[-1].progress.failures) == (4, 1)
    failed = by_name["attempt_failed"]
    assert (type(failed.error), str(failed.error), failed.kind) == (ConnectionError, "three", Kind.TRANSIENT)
    assert (by_name["map_item_failed"].index, by_name["map_item_failed"].error) == (2, results[2])
    assert by_name["call_failed"].seconds > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_map_that_fails_says_with_which_exception(mode: str, heard: list[Any]) -> None:
    bound = opmap(mode=mode, workers=1, retries=0)(work)
    with pytest.raises(MapError) as caught:
        bound.map([3])
    assert heard[-1].name == "map_finished"
    assert heard[-1].error is caught.value


def test_a_map_whose_reader_stops_early_is_finished(heard: list[Any]) -> None:
    stream = opmap(mode="thread", workers=1)(work).stream(range(10, 200))
    assert next(stream) == 100
    stream.close()
    assert heard[-1].name == "map_finished"
    assert isinstance(heard[-1].error, GeneratorExit)


@pytest.mark.parametrize("mode", MODES)
def test_items_that_the_cache_answers_are_hits(mode: str, heard: list[Any]) -> None:
    bound = opmap(mode=mode, workers=2, cache=True, retries=0)(work)
    assert bound.map([1, 2, 1]) == [10, 20, 10]
    counts = Counter(event.name for event in heard)
    assert (counts["cache_miss"], counts["cache_hit"], counts["call_succeeded"]) == (2, 1, 3)
    heard.clear()
    assert bound.map([1, 2]) == [10, 20]
    counts = Counter(event.name for event in heard)
    assert (counts["cache_miss"], counts["cache_hit"], counts["call_succeeded"]) == (0, 2, 2)


@pytest.mark.parametrize("mode", MODES)
def test_events_of_workers_name_the_profile_and_are_selected_by_it(mode: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        f"policies: {{api: {{retry: 0, parallel: {{mode: {mode}, workers: 1}}}}, db: {{retry: 0}}}}"
    )
    bound: Any = Registry.load(tmp_path, environ={}).bind(work, "api")
    seen: list[Any] = []
    offs = [on(CallSucceeded, seen.append, policy=policy) for policy in ("api", "db")]
    try:
        bound.map([1])
    finally:
        for off in offs:
            off()
    assert [(event.function, event.policy) for event in seen] == [(f"{__name__}:work", "api")]


def test_workers_that_live_on_follow_what_is_listened_to() -> None:
    bound = opmap(mode="process", workers=1, retries=0)(work)
    bound.map([1])
    seen: list[Any] = []
    off = on(CallSucceeded, seen.append)
    bound.map([1, 2])
    off()
    assert len(seen) == 2
    bound.map([1])
    assert len(seen) == 2
    off = on(CallFailed, seen.append)
    with pytest.raises(MapError):
        bound.map([1, 3])
    off()
    assert [event.name for event in seen] == ["call_succeeded"] * 2 + ["call_failed"]


def test_an_exception_that_pickling_would_lose_is_no_lost_event(heard: list[Any]) -> None:
    bound = Policy(retry=0, parallel={"mode": "process", "workers": 1, "on_error": "return"}).apply(inconvenient)
    bound.map([7])
    failed = next(event for event in heard if event.name == "attempt_failed")
    assert type(failed.error) is InconvenientError
    assert str(failed.error) == "place 7"


def test_an_exception_whose_class_cannot_be_found_here_is_replaced_by_its_text() -> None:
    seen: list[Any] = []
    off = on(AttemptFailed, seen.append)
    try:
        code = """
import sys, types, pickle
there = types.ModuleType("only_there")
sys.modules["only_there"] = there
exec("class Lost(Exception):\\n    pass", there.__dict__)
from opero.events import AttemptFailed
from opero.failures import Kind
from opero.parallel.transport.context import handle_records
from opero.parallel.transport.forwarding import pickled_event
event = AttemptFailed(function="there", error=there.Lost("text"), kind=Kind.UNKNOWN)
sys.stdout.buffer.write(pickle.dumps(pickled_event(event)))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        handle_records([pickle.loads(done.stdout)])
    finally:
        off()
    (event,) = seen
    assert event.function == "there"
    assert str(event.error) == "Lost: text"


def test_each_death_of_a_worker_is_told_once(heard: list[Any]) -> None:
    bound = opmap(mode="process", workers=2, retries=0, on_error="return")(died)
    results = bound.map([0, 1, 2])
    assert [results[0], results[2]] == [0, 2]
    counts = Counter(event.name for event in heard)
    assert isinstance(results[1], WorkerDiedError)
    assert counts["map_worker_lost"] == results[1].times  # it has been tried again
    assert (counts["map_item_failed"], counts["call_failed"]) == (1, 1)


def test_handlers_that_modules_register_in_workers_too_are_called_once_for_an_event(tmp_path: Path) -> None:
    """A worker that imports the program's module registers its handlers again."""
    program = tmp_path / "program.py"
    program.write_text("""
import multiprocessing, os
from opero import on, opmap
from opero.events import CallSucceeded

on(CallSucceeded, lambda event: print(event.function, os.getpid() == int(os.environ["MAIN"]), flush=True))

@opmap(mode="process", workers=1, retries=0, progress=False)
def double(number):
    return 2 * number

if __name__ == "__main__":
    os.environ["MAIN"] = str(os.getpid())
    assert double([1, 2]) == [2, 4]
""")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.stdout == "__main__:double True\n" * 2, done.stderr
