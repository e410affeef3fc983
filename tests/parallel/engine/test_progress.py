"""How the progress of a map is shown: a bar on a terminal, lines in a log, callbacks, and listeners of events."""

from __future__ import annotations

import asyncio
import fcntl
import io
import itertools
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import opero
from opero import Policy, Progress, opmap
from opero.events import MapProgressed
from opero.parallel.engine.progress import Display

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def on_terminal(code: str) -> str:
    """What a script writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    begin = "import sys, time\nfrom opero import *\n"
    script = subprocess.Popen(
        [sys.executable, "-c", begin + textwrap.dedent(code)], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 1 << 16):
            written += part
    except OSError:  # the script has ended
        pass
    os.close(ours)
    assert script.wait(120) == 0, written.decode()
    return written.decode()


def drawings(written: str) -> list[str]:
    """The successive states of a bar."""
    return [each.strip() for each in ESCAPES.sub("", written).replace("\n", "\r").split("\r") if each.strip()]


# A terminal


def test_a_bar_shows_name_count_rate_remaining_time_failures_and_retries() -> None:
    written = on_terminal("""
        failed = []
        @opmap(mode="thread", workers=2, on_error="return", retries=1, min_delay=0)
        def load(item):
            time.sleep(0.02)
            if item % 10 == 0:
                raise ValueError(item)
        load(range(80))
        print("end")
    """)
    *drawn, last = drawings(written)
    assert last == "end"
    assert len(drawn) >= 2
    pattern = r"load: +\d+%\|.*\| \d+/80 \[00:0\d<00:0\d, +[\d.]+ items/s(, failures=\d+)?(, retries=\d+)?\]"
    assert all(re.fullmatch(pattern, each) for each in drawn), drawn
    counts = [int(re.search(r"(\d+)/80", each)[1]) for each in drawn]  # type: ignore[index]
    assert counts == sorted(counts)
    assert "failures=" in drawn[-1]
    assert "retries=" in drawn[-1]
    assert "%" not in written.rpartition("\r")[2]  # the bar has been cleared


def test_progress_true_always_draws_a_bar_and_keeps_it() -> None:
    written = on_terminal("""
        @opmap(mode="thread", progress=True, cache=True)
        def load(item):
            return item
        load([1, 2, 3])
        load.map([1, 2, 3, 4])
        print("end")
    """)
    drawn = drawings(written)
    assert any(re.match(r"load: 100%\|.*\| 3/3 \[", each) for each in drawn)
    assert re.fullmatch(r"load: 100%\|.*\| 4/4 \[.*, hits=3\]", drawn[-2])
    assert written.endswith("]\r\nend\r\n")


def test_a_short_map_draws_no_bar_by_default() -> None:
    assert on_terminal("opmap(mode='thread')(abs)(range(1000)); opmap(abs)([1])") == ""


def test_progress_false_draws_no_bar() -> None:
    assert on_terminal("opmap(mode='thread', workers=1, progress=False)(time.sleep)([0.3, 0.3])") == ""


def test_a_stream_of_unknown_length_shows_a_count_without_a_total() -> None:
    written = on_terminal("""
        def load(item):
            time.sleep(0.02)
        for _ in opmap(mode="thread", workers=2)(load).stream(iter(range(80))):
            pass
    """)
    drawn = drawings(written)
    assert drawn
    assert all(re.fullmatch(r"load: \d+ items \[00:0\d, +[\d.]+ items/s\]", each) for each in drawn), drawn


def test_closing_an_endless_stream_closes_its_bar() -> None:
    written = on_terminal("""
        import itertools
        @opmap(mode="thread", workers=2, progress=True)
        def load(item):
            time.sleep(0.01)
        for count, _ in enumerate(load.stream(itertools.count())):
            if count == 40:
                break
        print("end")
    """)
    assert re.search(r"load: \d+ items \[00:0\d, +[\d.]+ items/s\]\r\nend\r\n$", ESCAPES.sub("", written))


def test_a_bar_is_updated_when_items_become_slow_and_while_none_has_finished() -> None:
    written = on_terminal("""
        @opmap(mode="thread", workers=1, progress=True)
        def load(item):
            if item >= 100_000:
                time.sleep(0.11)
        load(range(100_010))
        load([100_000] * 2)
        @opmap(mode="thread", workers=1, progress=True)
        def wait(item):
            time.sleep(1.3)
        wait([1])
    """)
    drawn = drawings(written)
    counts = {int(each[1]) for each in map(re.compile(r"(\d+)/100010").search, drawn) if each}
    assert len({count for count in counts if count > 100_000}) >= 3
    assert len({each for each in drawn if "0/1 [" in each}) > 1


def test_an_async_map_has_a_bar() -> None:
    written = on_terminal("""
        import asyncio
        @opmap(workers=4)
        async def load(item):
            await asyncio.sleep(0.05)
        asyncio.run(load(range(60)))
    """)
    assert any(re.match(r"load: +\d+%\|.*/60 \[", each) for each in drawings(written))


def test_a_closed_terminal_does_not_end_the_map() -> None:
    """The other side of the pseudo-terminal is closed before the map begins."""
    ours, theirs = pty.openpty()
    code = """
        import sys, time
        from opero import opmap
        input()
        print(opmap(mode="thread", progress=True, workers=1)(lambda item: time.sleep(0.15) or item)(range(4)))
    """
    script = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    os.close(ours)
    output, _ = script.communicate("\n", timeout=120)
    assert output == "[0, 1, 2, 3]\n"


# A log


def wait(item: int) -> int:
    time.sleep(0.005)
    return item


@pytest.mark.parametrize("progress", ["auto", False])
def test_nothing_is_written_without_a_terminal(progress: Any, tmp_path: Path) -> None:
    code = f"from opero import opmap; import time; opmap(mode='thread', progress={progress!r})(time.sleep)([0.6])"
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, stderr=log, check=True, timeout=120)
    assert (tmp_path / "log").read_bytes() == b""


def test_a_log_receives_complete_lines_between_those_of_others(tmp_path: Path) -> None:
    code = """
        import logging, sys, threading
        from opero import opmap
        from opero.parallel.engine import progress
        progress.BETWEEN_LINES = progress.BETWEEN_DRAWINGS = 0.02
        logging.basicConfig(format="line %(message)s end")

        def warn(item):
            logging.warning("%d", item)

        opmap(mode="thread", workers=4, progress=True)(warn)(range(20_000))
    """
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stderr=log, check=True, timeout=60)
    text = (tmp_path / "log").read_text()
    assert "\r" not in text
    assert "\x1b" not in text
    *lines, last = text.splitlines()
    own = [each for each in lines if each.startswith("warn: ")]
    pattern = r"warn: [\d,]+ of 20,000 items, \d+%, [\d,.]+/s(, \d+ (s|min) left)?"
    assert all(re.fullmatch(pattern, each) for each in own), own
    assert own
    assert all(re.fullmatch(r"line \d+ end", each) for each in lines if each not in own)
    assert re.fullmatch(r"warn: 20,000 of 20,000 items, 100%, [\d,]+/s", last)


def test_a_line_is_written_every_ten_seconds_at_most_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    display = Display(True, "load", 50, lambda: now)
    for second in range(26):
        now = 100.0 + second
        if display.is_due():
            display.update(second, 0, 0, 0)
    display.close(50, 1, 2, 3)
    assert capsys.readouterr().err.splitlines() == [
        "load: 10 of 50 items, 20%, 1/s, 40 s left",
        "load: 20 of 50 items, 40%, 1/s, 30 s left",
        "load: 50 of 50 items, 100%, 2/s, 1 failures, 2 retries, 3 cache hits",
    ]


def test_a_name_does_not_break_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(True, "two\nlines\r\x1b[31m", None)
    display.close(1, 0, 0, 0)
    assert re.fullmatch(r"two lines  \[31m: 1 items, [\d,]+/s\n", capsys.readouterr().err)


class Failing(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class FailingTerminal(Failing):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, "auto"])
@pytest.mark.parametrize("kind", ["closed", "none", "failing", "failing terminal", "no stream"])
def test_a_map_continues_if_stderr_cannot_be_written(kind: str, progress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = {
        "closed": io.StringIO(),
        "none": None,
        "failing": Failing(),
        "failing terminal": FailingTerminal(),
        "no stream": object(),
    }[kind]
    if kind == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert opmap(mode="thread", progress=progress)(wait)(range(100)) == list(range(100))


# Notebooks, with stand-ins for their modules


class Notebook(io.StringIO):
    """As the stderr of a kernel."""

    __module__ = "ipykernel.iostream"


def test_a_notebook_without_widgets_has_a_bar_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Notebook()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr(sys, "stderr", stream)
    opmap(mode="thread", progress=True)(wait)(range(20))
    assert re.search(r"wait: 100%\|.*\| 20/20 \[", stream.getvalue())


def test_a_log_receives_lines_although_a_notebook_kernel_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    opmap(mode="thread", progress=True)(wait)(range(20))
    assert re.fullmatch(r"wait: 20 of 20 items, 100%, .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_notebook_with_widgets_has_a_bar_of_widgets(is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Bar:
        n = 0
        is_closed = False

        def __init__(self, **options: Any) -> None:
            self.options = options
            made.append(self)
            if is_broken:
                raise ImportError("IProgress not found")

        def set_postfix(self, counts: dict[str, int], *, refresh: bool) -> None:
            self.counts = counts

        def update(self, count: int) -> None:
            self.n += count

        def close(self) -> None:
            self.is_closed = True

    module: Any = ModuleType("tqdm.notebook")
    module.tqdm, module.IProgress = Bar, object
    stream = Notebook()
    monkeypatch.setitem(sys.modules, "tqdm.notebook", module)
    monkeypatch.setattr(sys, "stderr", stream)
    opmap(mode="thread", progress=True)(wait)(range(20))
    (bar,) = made
    assert (bar.options["total"], bar.options["desc"]) == (20, "wait")
    if is_broken:
        assert "20/20" in stream.getvalue()
    else:
        assert (bar.n, bar.is_closed, stream.getvalue()) == (20, True, "")


# Callbacks and listeners


def flaky(item: int) -> int:
    time.sleep(0.01)
    if item % 8 == 0:
        raise ValueError(item)
    return item


def check(updates: list[Progress], done: int, total: int | None) -> Progress:
    assert [each.done for each in updates] == sorted(each.done for each in updates)
    assert [each.seconds for each in updates] == sorted(each.seconds for each in updates)
    gaps = [later.seconds - earlier.seconds for earlier, later in itertools.pairwise(updates)]
    assert all(gap >= 0.1 for gap in gaps[:-1])  # the last update is immediate
    last = updates[-1]
    assert (last.done, last.total) == (done, total)
    return last


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_callback_receives_updates_and_the_final_counts(mode: Any) -> None:
    updates: list[Progress] = []
    bound = opmap(mode=mode, workers=2, on_error="return", retries=1, min_delay=0)(flaky)
    results = bound.map(range(80), progress=updates.append)
    last = check(updates, 80, 80)
    assert len(results) == 80
    assert len(updates) > 2
    assert (last.name, last.failures, last.retries, last.cache_hits) == ("flaky", 10, 10, 0)
    assert last.rate == pytest.approx(80 / last.seconds)
    assert last.remaining == 0


def test_counts_are_those_of_one_map() -> None:
    updates: list[Progress] = []
    bound = opmap(mode="thread", cache=True, on_error="skip", retries=1, min_delay=0)(flaky)
    bound.map(range(16))
    bound.map(range(24), progress=updates.append)
    assert (updates[-1].done, updates[-1].failures, updates[-1].retries, updates[-1].cache_hits) == (24, 3, 3, 14)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_counts_finished_items(ordered: bool) -> None:
    updates: list[Progress] = []
    bound = opmap(mode="thread", workers=2, ordered=ordered)(wait)
    for _ in bound.stream(iter(range(100)), progress=updates.append):
        pass
    last = check(updates, 100, None)
    assert last.remaining is None


def test_finished_items_do_not_wait_for_a_slow_source() -> None:
    read, updates = 0, []

    def items() -> Iterator[int]:
        nonlocal read
        for read in range(20):
            time.sleep(0.03)
            yield read

    results = opmap(mode="thread", workers=8)(abs).stream(items())
    first = next(results)
    assert (first, read < 10) == (0, True)
    assert list(results) == list(range(1, 20))
    opmap(mode="thread", workers=8)(abs).map(items(), progress=lambda progress: updates.append(progress.done))
    assert len(updates) > 2


def test_a_closed_stream_reports_its_last_counts() -> None:
    updates: list[Progress] = []
    results = opmap(mode="thread", workers=2)(wait).stream(itertools.count(), progress=updates.append)
    next(results)
    results.close()
    assert updates[-1].done >= 1
    assert updates[-1].total is None


@pytest.mark.parametrize("streams", [True, False])
def test_an_async_map_calls_its_callback_in_the_thread_of_the_event_loop(streams: bool) -> None:
    updates: list[Progress] = []
    idents: set[int] = set()
    ticks = 0

    async def load(item: int) -> int:
        await asyncio.sleep(0.01)
        return item

    def note(progress: Progress) -> None:
        updates.append(progress)
        idents.add(threading.get_ident())

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        bound = opmap(workers=4)(load)
        if streams:
            assert [each async for each in bound.stream(range(100), progress=note)] == list(range(100))
        else:
            assert await bound.map(range(100), progress=note) == list(range(100))
        ticking.cancel()

    asyncio.run(main())
    check(updates, 100, 100)
    assert idents == {threading.get_ident()}
    assert ticks >= 5


def test_a_map_whose_items_are_all_cached_reports_progress() -> None:
    updates: list[Progress] = []

    def items() -> Iterator[int]:
        for item in range(400):
            time.sleep(0.001)
            yield item % 4

    bound = opmap(mode="thread", cache=True)(abs)
    bound.map(range(4))
    bound.map(items(), progress=updates.append)
    assert check(updates, 400, None).cache_hits == 400
    assert len(updates) > 2


def test_a_listener_receives_the_progress_of_all_maps() -> None:
    events: list[MapProgressed] = []
    off = opero.on("map_progressed", events.append)
    try:
        opmap(mode="thread", progress=False)(wait)(range(30))
        list(opmap(mode="thread")(wait).stream(iter(range(3))))
    finally:
        off()
    first, last = (event for event in events if event.progress.done in (30, 3))
    assert (first.name, first.function) == ("map_progressed", f"{__name__}:wait")
    assert first.progress.name == "wait"
    assert (last.progress.done, last.progress.total) == (3, None)


@pytest.mark.parametrize("how", ["callback", "event"])
def test_a_callback_that_raises_does_not_end_the_map(how: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    off = opero.on("map_progressed", fail) if how == "event" else lambda: None
    try:
        bound = opmap(mode="thread", workers=1)(wait)
        results = bound.map(range(60), progress=fail) if how == "callback" else bound(range(60))
    finally:
        off()
    assert results == list(range(60))
    records = [record for record in caplog.records if "failed" in record.getMessage()]
    if how == "callback":
        (record,) = records
        assert record.getMessage() == "the progress callback of wait failed, and is not called again"
        assert record.exc_info
        assert record.levelno == logging.ERROR
    else:
        assert records


def test_a_callback_that_interrupts_leaves_nothing_running() -> None:
    """Like Ctrl-C while a bar is drawn."""

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        opmap(mode="process", workers=1)(wait).map(range(3), progress=interrupt)
    assert threading.active_count() <= before + 3
    assert opmap(mode="process", workers=1)(wait)(range(3)) == [0, 1, 2]


# Options and arguments


def test_an_argument_named_progress_is_passed_to_a_function_that_has_it() -> None:
    def load(item: int, progress: str, *, journal: int = 0) -> tuple[int, str, int]:
        return item, progress, journal

    bound = opmap(mode="thread")(load)
    assert bound.map([1], progress="mine", journal=7) == [(1, "mine", 7)]
    assert list(bound.stream([1], progress="mine", journal=7)) == [(1, "mine", 7)]


@pytest.mark.parametrize("wrong", ["sometimes", 5, [True]])
def test_an_invalid_value_of_progress_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="wait: progress is .*; pass True, False, 'auto', or a function"):
        opmap(mode="thread")(wait).map([1], progress=wrong)


def test_an_async_callback_is_refused() -> None:
    async def note(_: Progress) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="is async and would never be awaited; pass a plain function"):
        opmap(mode="thread")(wait).map([1], progress=note)


def test_the_argument_of_a_call_overrides_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    opmap(mode="thread", progress=True)(wait).map([1], progress=False)
    assert capsys.readouterr().err == ""
    opmap(mode="thread", progress=False)(wait).map([1], progress=True)
    assert capsys.readouterr().err.startswith("wait: 1 of 1 items")


def test_a_callback_in_a_policy_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"is a callback: pass it to the call, f.map\(items, progress=callback\)"):
        opmap(progress=print)  # type: ignore[call-overload]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("auto", "auto"), ("on", True)])
def test_progress_can_be_set_in_files_and_variables(text: str, value: Any, tmp_path: Path) -> None:
    text_of_file = f"policies:\n  file: {{parallel: {{progress: {text}}}}}\n  batch: {{parallel: {{}}}}\n"
    (tmp_path / "base.yaml").write_text(text_of_file)
    registry = opero.Registry.load(tmp_path, environ={"OPERO_BATCH_PROGRESS": text})
    for name in ("file", "batch"):
        parallel = registry[name].parallel
        assert parallel is not None
        assert parallel.progress == value


# Text


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress("f", 0, None, 0, 0, 0, 0.0), "f: 0 items, 0/s"),
        (Progress("f", 0, 0, 0, 0, 0, 1.0), "f: 0 items, 0/s"),
        (Progress("f", 0, 10, 0, 0, 0, 1.0), "f: 0 of 10 items, 0%, 0/s"),
        (Progress("f", 5, 10, 1, 0, 2, 10.0), "f: 5 of 10 items, 50%, 0.5/s, 10 s left, 1 failures, 2 cache hits"),
        (Progress("f", 999, 1000, 0, 3, 0, 0.001), "f: 999 of 1,000 items, 99%, 999,000/s, 0 s left, 3 retries"),
        (Progress("f", 10, 10_000, 0, 0, 0, 10.0), "f: 10 of 10,000 items, 0%, 1/s, 2.8 h left"),
        (Progress("f", 10, 1_000, 0, 0, 0, 10.0), "f: 10 of 1,000 items, 1%, 1/s, 16 min left"),
        (Progress("f", 12, 10, 0, 0, 0, 1.0), "f: 12 of 10 items, 120%, 12/s"),
    ],
)
def test_progress_as_text_has_counts_rate_and_remaining_time(progress: Progress, text: str) -> None:
    assert str(progress) == text


def test_a_map_of_a_policy_object_accepts_a_callback() -> None:
    updates: list[Progress] = []
    bound: Callable[..., Any] = Policy(parallel="thread").apply(wait)
    bound.map([1, 2], progress=updates.append)  # type: ignore[attr-defined]
    assert updates[-1].done == 2
