"""Large setups are put into memory that workers map: once for a map, without copies of arrays, and freed at its end."""

from __future__ import annotations

import gc
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib.externals.loky
import numpy as np
import psutil
import pytest

from opero import opmap
from opero.parallel.transport import parcel
from opero.parallel.transport.parcel import LARGE, Packed, Parcel
from opero.runtime.private_folder import private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without memory files. The folder is this process's, and keeps a file open."""
    private_folder()
    monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.fixture(params=["in memory", "on disk"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "on disk":
        request.getfixturevalue("on_disk")
    return


def open_files() -> int:
    return psutil.Process().num_fds()


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("count", [0, 1, LARGE - 100, LARGE + 1, 3 * LARGE + 7])
def test_what_is_packed_is_unpacked_in_every_size(count: int) -> None:
    numbers, text, files = np.arange(count, dtype=np.uint8), b"x" * count, open_files()
    value = {"array": numbers, "fortran": np.asfortranarray(numbers.reshape(-1, 1)), "text": text, "again": numbers}
    packed = Packed(value)
    contents: Any = packed.contents
    loaded = contents.load() if isinstance(contents, Parcel) else parcel.pickle.loads(contents)
    packed.close()
    assert isinstance(contents, Parcel) == (count > LARGE // 2)
    assert loaded["text"] == text
    assert all(np.array_equal(loaded[name], value[name]) for name in ("array", "fortran", "again"))
    assert loaded["again"] is loaded["array"]
    del loaded
    assert open_files() == files


@pytest.mark.usefixtures("anywhere")
def test_an_array_is_a_view_that_can_be_written_to_by_one_reader_alone() -> None:
    packed = Packed(np.zeros(LARGE))
    assert isinstance(packed.contents, Parcel)
    one, other = packed.contents.load(), packed.contents.load()
    packed.close()
    one[:] = 1
    assert (one.sum(), other.sum()) == (LARGE, 0)


@pytest.mark.usefixtures("on_disk")
def test_the_file_is_deleted_also_if_its_value_cannot_be_pickled() -> None:
    folder = private_folder()
    with pytest.raises(TypeError):
        Packed([b"x" * 10 * LARGE, iter(open_files, 0), (each for each in ())])
    assert not list(folder.glob("parcel-*"))


def total(item: int, numbers: Any) -> tuple[int, float, int]:
    """The worker, a sum, and the memory that this worker has written to; pages of a file that it reads do not count."""
    found = float(numbers.sum()) + item
    text = Path("/proc/self/smaps_rollup").read_text()
    return os.getpid(), found, 1024 * int(text.partition("Anonymous:")[2].split()[0])


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="no system to ask for written pages")
def test_workers_share_the_pages_of_a_large_argument() -> None:
    numbers = np.ones(40_000_000 // 8)
    mapped = opmap(mode="process", workers=2, progress=False)(total)
    small = {pid: memory for pid, _, memory in mapped(range(8), numbers[:10])}
    for _ in range(2):
        results = mapped(range(8), numbers)
        assert [value for _, value, _ in results] == [item + len(numbers) for item in range(8)]
        for pid, _, memory in results:
            assert memory - small.get(pid, memory) < numbers.nbytes / 2  # neither a copy, nor those of earlier maps


class Large:
    def __init__(self) -> None:
        self.text = b"x" * 2 * LARGE


def held(_: int, large: Large) -> int:
    """How many large arguments this worker holds."""
    return sum(type(each) is type(large) for each in gc.get_objects())


def test_a_large_argument_is_forgotten_with_its_map() -> None:
    mapped = opmap(mode="process", workers=1, progress=False)(held)
    for _ in range(3):
        assert mapped([1], Large()) == [1]


def test_a_worker_that_is_started_later_gets_a_large_argument_too() -> None:
    def die_once(item: int, text: bytes, marker: str) -> int:
        if item == 3 and not os.path.exists(marker):
            with open(marker, "w", encoding="utf-8"):
                os._exit(1)
        return len(text) + item

    marker = str(private_folder() / f"died-{time.monotonic_ns()}")
    mapped = opmap(mode="process", workers=1, progress=False)(die_once)
    assert mapped(range(6), b"x" * 2 * LARGE, marker=marker) == [2 * LARGE + item for item in range(6)]


def size(item: int, text: bytes) -> int:
    return len(text) + item


def test_executors_of_local_processes_map_a_large_argument() -> None:
    text = b"x" * 5 * LARGE
    for executor in (ProcessPoolExecutor(1), joblib.externals.loky.ProcessPoolExecutor(1)):
        with executor:
            mapped = opmap(executor=executor, progress=False)(size)
            assert mapped(range(3), text) == [len(text) + item for item in range(3)]


def grow(megabytes: int) -> tuple[int, int]:
    """Hold more memory, as a model does that is loaded at first use."""
    MODEL.append(bytearray(megabytes << 20))
    return os.getpid(), len(MODEL)


MODEL: list[bytearray] = []


def test_a_worker_that_holds_a_large_model_is_kept() -> None:
    mapped = opmap(mode="process", workers=1, progress=False)(grow)
    [(first, _)] = mapped([400])
    for turn in range(3):
        assert [pid for pid, _ in mapped([1] * 5)] == [first] * 5, turn
    psutil.Process(first).kill()  # so that it holds no memory for the tests that follow
