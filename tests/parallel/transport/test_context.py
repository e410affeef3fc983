"""The context of calls in worker processes: logging, context variables, initializers, maps within maps."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from opero import MapError, OperoError, opmap

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER = logging.getLogger("tests.context")
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE", default="unset")


def mapped(function: Any, **options: Any) -> Any:
    return opmap(**{"mode": "process", "workers": 1, "retries": 0, **options})(function)


# Logging


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.NOTSET)


def log(value: Any) -> int:
    LOGGER.info("got %s of %d", value, 7)
    LOGGER.debug("details of %s", value)
    return os.getpid()


def log_then_fail(value: Any) -> None:
    LOGGER.warning("about to fail")
    try:
        raise KeyError(value)
    except KeyError:
        LOGGER.exception("it failed")
        raise


def test_a_log_record_reaches_the_handlers_of_the_parent_once_and_unchanged(kept: Kept) -> None:
    [pid] = mapped(log)(["x"])
    [record] = kept.records
    assert (record.name, record.levelno) == (LOGGER.name, logging.INFO)
    assert (record.msg, record.args) == ("got %s of %d", ("x", 7))
    assert record.getMessage() == "got x of 7"
    assert record.process == pid != os.getpid()
    assert record.funcName == "log"


def test_workers_use_the_log_levels_that_the_parent_has_at_each_map(kept: Kept) -> None:
    bound = mapped(log)
    messages = []
    for level in (logging.DEBUG, logging.INFO, logging.DEBUG, logging.ERROR, logging.DEBUG):
        LOGGER.setLevel(level)
        bound(["x"])
        messages.append(len(kept.records))
        kept.records.clear()
    assert messages == [2, 1, 2, 0, 2]


def test_a_log_level_that_is_reset_in_the_parent_is_reset_in_workers(kept: Kept) -> None:
    root, bound = logging.root.level, mapped(log)
    try:
        logging.root.setLevel(logging.INFO)
        LOGGER.setLevel(logging.ERROR)
        bound(["x"])
        assert kept.records == []
        LOGGER.setLevel(logging.NOTSET)
        bound(["x"])
        assert len(kept.records) == 1
    finally:
        logging.root.setLevel(root)


def test_logging_disabled_in_the_parent_is_disabled_in_workers(kept: Kept) -> None:
    bound = mapped(log)
    logging.disable(logging.INFO)
    try:
        bound(["x"])
        assert kept.records == []
    finally:
        logging.disable(logging.NOTSET)
    bound(["x"])
    assert len(kept.records) == 1


def test_a_record_with_an_exception_has_the_text_of_its_traceback(kept: Kept) -> None:
    mapped(log_then_fail, on_error="return")(["x"])
    assert [record.getMessage() for record in kept.records] == ["about to fail", "it failed"]
    assert "KeyError: 'x'" in str(kept.records[1].exc_text)
    assert "in log_then_fail" in str(kept.records[1].exc_text)
    assert kept.records[1].msg == "it failed"
    assert logging.Formatter().format(kept.records[1]).count("Traceback") == 1


def log_unpicklable(what: str) -> None:
    match what:
        case "lock":
            LOGGER.info("a %s and a %r", threading.Lock(), "text")
        case "mapping":
            LOGGER.info("a %(lock)s", {"lock": threading.Lock()})
        case "extra":
            LOGGER.info("with extra", extra={"lock": threading.Lock(), "user": "me"})
        case "changed":
            items = [1]
            LOGGER.info("items: %s", items)
            items.append(2)
        case "unreadable":
            LOGGER.info("one %s", Unreadable())
        case "number":
            LOGGER.info("a %d", Number())


class Unreadable:
    """Cannot be unpickled in another process."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        if os.getpid() != state["pid"]:
            raise LookupError("read in another process")

    def __repr__(self) -> str:
        return "unreadable"


class Number:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __int__(self) -> int:
        return 7

    __index__ = __int__


def test_a_record_whose_arguments_cannot_be_sent_keeps_its_message(kept: Kept) -> None:
    mapped(log_unpicklable)(["lock", "mapping", "extra", "changed", "unreadable", "number"])
    lock, mapping, extra, changed, unreadable, number = kept.records
    assert lock.msg == "a %s and a %r"
    assert "<unlocked _thread.lock" in lock.getMessage()
    assert lock.getMessage().endswith("and a 'text'")
    assert "<unlocked _thread.lock" in mapping.getMessage()
    assert extra.user == "me"  # type: ignore[attr-defined]
    assert changed.getMessage() == "items: [1]"
    assert unreadable.getMessage() == "one unreadable"
    assert number.getMessage() == "a 7"


def log_many(count: int) -> None:
    for number in range(count):
        LOGGER.info("number %d", number)


def test_records_arrive_in_order(kept: Kept) -> None:
    mapped(log_many)([3000])
    assert [record.args for record in kept.records] == [(number,) for number in range(3000)]


class Raising(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ZeroDivisionError("a broken handler")


def test_a_handler_that_raises_does_not_end_the_map(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    raising = Raising()
    LOGGER.addHandler(raising)
    try:
        assert len(mapped(log)(["x", "y"])) == 2
    finally:
        LOGGER.removeHandler(raising)
    assert len(kept.records) == 2
    assert "a broken handler" in capsys.readouterr().err


def test_records_of_async_functions_and_of_opero_itself_arrive(kept: Kept) -> None:
    async def log_async(value: Any) -> None:
        LOGGER.info("async %s", value)
        raise ConnectionError("down")

    own = Kept()
    opero_logger = logging.getLogger("opero")
    opero_logger.addHandler(own)
    try:
        bound = mapped(log_async, mode="async_process", circuit_breaker=1, on_error="skip")
        asyncio.run(bound(["x"]))
    finally:
        opero_logger.removeHandler(own)
    assert [record.getMessage() for record in kept.records] == ["async x"]
    assert any("circuit open" in record.getMessage() for record in own.records)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
def test_records_of_forked_workers_are_handled_once() -> None:
    code = """
        import logging, multiprocessing, sys
        from concurrent.futures import ProcessPoolExecutor
        from opero import opmap

        logger = logging.getLogger("app")

        def log(value):
            logger.warning("got %s", value)
            return value

        def pool():
            return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))

        if __name__ == "__main__":
            logging.basicConfig(stream=sys.stdout, format="%(message)s")
            opmap(executor=pool, workers=1, retries=0)(log)(["x"])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("got x\n", "")


# Context variables


def read(_: Any = None) -> Any:
    return VARIABLE.get()


def test_a_context_variable_of_a_module_has_the_value_of_the_caller_at_each_map() -> None:
    bound = mapped(read)
    values = []
    for value in ("first", "second", "first"):
        token = VARIABLE.set(value)
        values += bound([1])
        VARIABLE.reset(token)
    values += bound([1])
    assert values == ["first", "second", "first", "unset"]


def test_a_local_context_variable_is_sent_with_the_function_that_reads_it() -> None:
    local: contextvars.ContextVar[int] = contextvars.ContextVar("local")
    local.set(3)
    assert mapped(lambda number: number + local.get())([1]) == [4]


def test_a_context_variable_whose_value_cannot_be_sent_is_unset_in_workers() -> None:
    for value in (threading.Lock(), Unreadable()):
        token = VARIABLE.set(value)
        try:
            assert mapped(read)([1]) == ["unset"]
        finally:
            VARIABLE.reset(token)


def write(number: int) -> Any:
    before = VARIABLE.get()
    VARIABLE.set(number)
    return before


@pytest.mark.parametrize("mode", ["thread", "process", "auto"])
def test_a_context_variable_that_an_item_sets_is_unset_in_other_maps_and_in_the_caller(mode: str) -> None:
    bound = mapped(write, mode=mode)
    assert bound([1]) == ["unset"]
    assert bound([2]) == ["unset"]
    assert VARIABLE.get() == "unset"


# Initializers


STATE: dict[str, Any] = {}


def prepare() -> None:
    STATE["count"] = STATE.get("count", 0) + 1
    VARIABLE.set("prepared")


def state(_: Any) -> tuple[Any, Any, int]:
    return STATE.get("count"), VARIABLE.get(), os.getpid()


async def state_async(_: Any) -> tuple[Any, Any, int]:
    return state(_)


@pytest.mark.parametrize("named", [False, True])
def test_an_initializer_is_called_once_in_each_process_before_its_first_item(named: bool) -> None:
    initializer = f"{__name__}:prepare" if named else prepare
    for items in (range(20), range(3)):
        results = mapped(state, initializer=initializer, workers=2)(items)
        assert {result[:2] for result in results} == {(1, "prepared")}


def test_an_initializer_is_called_in_workers_with_event_loops() -> None:
    results = asyncio.run(mapped(state_async, mode="async_process", initializer=prepare)(range(3)))
    assert {result[:2] for result in results} == {(1, "prepared")}


def die_in_first(path: str) -> tuple[Any, Any, int]:
    if not Path(path).exists():
        Path(path).touch()
        os._exit(3)
    return state(path)


HERE: list[str] = []


def prepare_thread() -> None:
    HERE.append("thread")
    VARIABLE.set("prepared here")


def prepare_async() -> None:
    HERE.append("async")
    VARIABLE.set("prepared here")


def prepare_auto() -> None:
    HERE.append("auto")
    VARIABLE.set("prepared here")


@pytest.mark.parametrize(
    ("mode", "initializer"), [("thread", prepare_thread), ("async", prepare_async), ("auto", prepare_auto)]
)
def test_an_initializer_is_called_once_in_this_process_if_items_run_here(mode: str, initializer: Any) -> None:
    bound = mapped(state_async if mode == "async" else state, mode=mode, initializer=initializer)
    for _ in range(2):
        results = bound(range(5))
        results = asyncio.run(results) if asyncio.iscoroutine(results) else results
        assert {result[1] for result in results} == {"prepared here"}
    assert HERE.count(mode) == 1
    assert VARIABLE.get() == "unset"


def test_an_initializer_that_fails_in_this_process_is_named() -> None:
    with pytest.raises(OperoError, match=r"state: the initializer .*refuse failed: ConnectionError: no database here"):
        mapped(state, mode="thread", initializer=refuse)(range(3))


def test_a_worker_that_replaces_a_dead_one_is_initialized(tmp_path: Path) -> None:
    results = mapped(die_in_first, initializer=prepare)([str(tmp_path / "died")] * 3)
    assert {result[:2] for result in results} == {(1, "prepared")}


def refuse() -> None:
    raise ConnectionError("no database here")


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, code: int, lock: Any) -> None:
        super().__init__(f"code {code}")
        self.lock = lock


def refuse_with_unpicklable() -> None:
    raise Unpicklable(7, threading.Lock())


@pytest.mark.parametrize(
    ("initializer", "message"),
    [(refuse, "ConnectionError: no database here"), (refuse_with_unpicklable, "Unpicklable: code 7")],
)
def test_an_initializer_that_fails_ends_the_map_and_is_named(initializer: Any, message: str) -> None:
    with pytest.raises(OperoError) as caught:
        mapped(state, initializer=initializer, workers=2)(range(20))
    name = f"{__name__}.{initializer.__name__}"
    assert str(caught.value) == f"state: the initializer {name} failed in a worker process: {message}"
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == initializer.__name__
    assert isinstance(caught.value.__cause__, MapError)
    assert mapped(state)([1])[0][2] != os.getpid()


# Maps within maps


def descendants() -> int:
    return len(psutil.Process().children(recursive=True))


def square(number: int) -> int:
    return number * number


def nested(mode: str) -> tuple[list[int], int]:
    results = opmap(mode=mode, workers=4, retries=0)(square)(range(5))
    return results, descendants()


@pytest.mark.parametrize("mode", ["process", "thread", "auto"])
def test_a_map_within_a_worker_starts_no_processes(mode: str) -> None:
    assert mapped(nested)([mode]) == [([0, 1, 4, 9, 16], 0)]


async def square_async(number: int) -> int:
    await asyncio.sleep(0)
    return number * number


async def nested_async(mode: str) -> tuple[list[int], int]:
    results = await opmap(mode=mode, workers=4, retries=0)(square_async)(range(5))
    return results, descendants()


def nested_loop(mode: str) -> tuple[list[int], int]:
    return asyncio.run(nested_async(mode))


@pytest.mark.parametrize("mode", ["async", "async_process"])
def test_an_async_map_within_a_worker_uses_the_running_event_loop(mode: str) -> None:
    assert asyncio.run(mapped(nested_async, mode="async_process")([mode])) == [([0, 1, 4, 9, 16], 0)]
    assert mapped(nested_loop)([mode]) == [([0, 1, 4, 9, 16], 0)]


def nested_initialized(_: int) -> list[Any]:
    return [result[:2] for result in opmap(mode="process", retries=0, initializer=prepare_nested)(state)([1])]


def prepare_nested() -> None:
    STATE["count"] = "nested"


def test_the_initializer_of_a_map_within_a_worker_is_called() -> None:
    assert mapped(nested_initialized)([1]) == [[("nested", "unset")]]


def test_maps_in_processes_can_start_in_threads_beside_an_event_loop() -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(mapped(square), range(50)) for _ in range(2)))

    assert asyncio.run(main()) == [[number * number for number in range(50)]] * 2
