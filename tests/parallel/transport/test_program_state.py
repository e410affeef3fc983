"""Kept worker processes take over the state of the program at each map."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from opero import opmap
from opero.parallel.transport.program_state import THREAD_LIMITS, traits, worker_environment
from opero.runtime.machine import cpu_limit


def run(program: str, folder: Path, *options: str) -> str:
    """What a program prints. It must print nothing to stderr."""
    file = folder / "program.py"
    file.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, *options, str(file)],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_the_state_is_that_of_the_map_that_runs_also_in_a_directory_that_was_deleted(tmp_path: Path) -> None:
    program = """
        import decimal, locale, os, random, sys, time, warnings
        from opero import opmap


        def state(_):
            mask = os.umask(0)
            os.umask(mask)
            return {
                "directory": directory(), "variables": {k: v for k, v in os.environ.items() if k.startswith("MINE")},
                "zone": time.localtime(0).tm_hour, "path": sys.path[:], "arguments": sys.argv[:], "mask": mask,
                "filters": warnings.filters[:], "locale": locale.setlocale(locale.LC_ALL),
                "recursion": sys.getrecursionlimit(), "digits": sys.get_int_max_str_digits(),
                "precision": decimal.getcontext().prec, "pid": os.getpid(),
            }


        def directory():
            try:
                return os.getcwd()
            except FileNotFoundError:
                return None


        class Mine(UserWarning):
            pass


        def change_directory(number):
            os.chdir(home)
            os.makedirs(f"folder{number}")
            os.chdir(f"folder{number}")
            if number % 2:
                os.rmdir(f"{home}/folder{number}")

        def change_variable(number):
            if number % 3:
                os.environ[f"MINE{number % 4}"] = str(number)
            else:
                os.environ.pop(f"MINE{number % 4}", None)

        def change_zone(number):
            os.environ["TZ"] = ("UTC", "Asia/Tokyo", "America/New_York")[number % 3]
            time.tzset()

        def change_filters(number):
            category = (UserWarning, Mine)[number % 2]
            warnings.filterwarnings(("ignore", "error", "once")[number % 3], f"text{number}", category)

        home = os.getcwd()
        changes = [
            change_directory, change_variable, change_zone, change_filters,
            lambda number: sys.path.append(f"/nowhere/{number}"),
            lambda number: sys.argv.append(str(number)),
            lambda number: os.umask((0o022, 0o027, 0o077)[number % 3]),
            lambda number: locale.setlocale(locale.LC_ALL, ("C", "C.UTF-8", "POSIX")[number % 3]),
            lambda number: sys.setrecursionlimit(1000 + number),
            lambda number: sys.set_int_max_str_digits(5000 + number),
            lambda number: setattr(decimal.getcontext(), "prec", 1 + number % 50),
        ]
        mapped = opmap(mode="process", workers=1, retries=0, progress=False)(state)

        if __name__ == "__main__":
            chosen = random.Random(17)
            pids = set()
            for number in range(40):
                for change in chosen.sample(changes, 3):
                    change(number)
                [theirs], ours = mapped([0]), state(0)
                pids.add(theirs.pop("pid"))
                del ours["pid"]
                # A class of __main__ is another one there.
                for each in (ours, theirs):
                    filters = each.pop("filters")
                    each["filters"] = [(kind, text and text.pattern, cls.__name__) for kind, text, cls, *_ in filters]
                assert theirs == ours, (number, theirs, ours)
            assert len(pids) == 1
            print("same")
    """
    assert run(program, tmp_path) == "same\n"


def test_an_import_is_not_ended_by_a_warning_that_ends_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        import warnings

        warnings.warn("old", DeprecationWarning)

        def call(text):
            if text:
                warnings.warn(text)
            return text
    """
    (tmp_path / "noisy.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapped = opmap(mode="process", workers=1, progress=False, on_error="return")(__import__("noisy").call)
        warnings.simplefilter("error")
        text, warned = mapped(["", "x"])
        assert (text, type(warned)) == ("", UserWarning)
        warnings.simplefilter("ignore")
        assert mapped(["", "x"]) == ["", "x"]


def variables(_: int) -> tuple[int, list[str | None]]:
    return os.getpid(), [os.environ.get(name) for name in THREAD_LIMITS]


@pytest.mark.parametrize(("workers", "inner"), [(1, "auto"), (10_000, "auto"), (1, 3)])
def test_libraries_get_their_share_of_the_processors(workers: int, inner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_LIMITS:
        monkeypatch.delenv(name, raising=False)
    mapped = opmap(mode="process", workers=workers, inner_threads=inner, progress=False)(variables)
    share = inner if inner != "auto" else max(1, cpu_limit() // workers)
    [(_, found)] = mapped([1])
    assert found == [str(share)] * len(THREAD_LIMITS)
    assert not any(name in os.environ for name in THREAD_LIMITS)


def test_what_the_program_says_of_threads_is_kept_unless_the_policy_has_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    at = THREAD_LIMITS.index("OMP_NUM_THREADS")
    for inner, expected in (("auto", "7"), (2, "2")):
        mapped = opmap(mode="process", workers=1, inner_threads=inner, progress=False)(variables)
        [(_, found)] = mapped([1])
        assert found[at] == expected


def test_a_map_gets_processes_that_were_started_with_its_thread_limits() -> None:
    one = opmap(mode="process", workers=1, inner_threads=1, progress=False)(variables)
    two = opmap(mode="process", workers=1, inner_threads=2, progress=False)(variables)
    [(first, _)], [(second, _)] = one([1]), two([1])
    assert first != second
    assert ([one([1])[0][0]], [two([1])[0][0]]) == ([first], [second])


def openblas_threads(_: int) -> int | None:
    """How many threads the OpenBLAS of numpy uses in this process."""
    import numpy as np

    assert np
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    file = next((line.split()[-1] for line in lines if "openblas" in line), None)
    if file is None:
        return None
    library = ctypes.CDLL(file)
    names = ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads")
    return next((getattr(library, name)() for name in names if hasattr(library, name)), None)


@pytest.mark.skipif(cpu_limit() < 2, reason="OpenBLAS starts no more threads than there are processors")
def test_numpy_starts_no_more_threads_in_a_worker_than_its_share() -> None:
    if openblas_threads(0) is None:
        pytest.skip("numpy has no OpenBLAS here")
    for inner in (1, 2):
        mapped = opmap(mode="process", workers=1, inner_threads=inner, progress=False)(openblas_threads)
        assert mapped([1]) == [inner]


def test_traits_are_what_a_process_keeps_to_its_end() -> None:
    assert traits(worker_environment(1, 1)) == traits(worker_environment(1, 5))
    assert traits(worker_environment(1, 1)) != traits(worker_environment(2, 1))


def test_a_filter_that_cannot_be_sent_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(UserWarning):
        lock = threading.Lock()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Local)
        assert opmap(mode="process", workers=1, progress=False)(variables)([1])


def test_a_program_ends_without_a_resource_warning(tmp_path: Path) -> None:
    program = """
        import asyncio, gc
        from opero import opmap

        def square(number):
            return number * number

        async def square_async(number):
            return number * number

        async def first(mapped):
            async for each in mapped.stream(range(1000)):
                return each

        if __name__ == "__main__":
            big, left_open = bytes(1_000_000), []
            for mode in ("thread", "process", "auto"):
                options = dict(mode=mode, workers=2, progress=False)
                mapped = opmap(**options, on_error="return")(square)
                assert len(mapped([1, 2, None, big])) == 4
                assert next(mapped.stream(range(1000))) == 0
                assert opmap(**options)(lambda number, data: len(data))([1, 2], big) == [10**6, 10**6]
                assert mapped(range(5), journal=f"{mode}.jsonl") == [0, 1, 4, 9, 16]
                left_open.append(mapped.stream(range(1000)))
                next(left_open[-1])
            mapped = opmap(mode="async_process", workers=1, progress=False)(square_async)
            assert asyncio.run(mapped(range(50)))[-1] == 49 * 49
            assert asyncio.run(first(mapped)) == 0
            gc.collect()
    """
    assert run(program, tmp_path, "-W", "error") == ""
