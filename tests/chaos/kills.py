"""Kills workers of maps with SIGKILL: every result arrives, and only items of killed workers run again.

What docs/guide.md promises: a worker that dies costs its own items, those that it ran and those that it had finished
and not yet reported, at most about 100 ms of work.
"""

from __future__ import annotations

import asyncio
import collections
import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tests.chaos.harness import Chaos, begin

from opero import Policy

ITEMS = 150
WORKERS = 3
RETRIES = 100
"""Enough that no item fails because chance hits it again and again."""
MOST_UNREPORTED = 1.0
"""Seconds of finished work that a kill may cost: 0.1 by the promise, and what a loaded machine adds."""


def tell(diary: str, *words: object) -> None:
    """Append a line to a file that many processes write, which the system does in one piece."""
    file = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (" ".join(map(str, (*words, os.getpid(), time.monotonic()))) + "\n").encode())
    finally:
        os.close(file)


def work(item: tuple[int, float], diary: str) -> str:
    number, seconds = item
    tell(diary, "begin", number)
    time.sleep(seconds)
    tell(diary, "end", number)
    return f"result {number}"


async def work_async(item: tuple[int, float], diary: str) -> str:
    number, seconds = item
    tell(diary, "begin", number)
    await asyncio.sleep(seconds)
    tell(diary, "end", number)
    return f"result {number}"


class Killer(threading.Thread):
    """Kills a worker now and then, and remembers which.

    It has begun an item, apart from one in each map that may be starting: a map ends if three workers in a row die
    before they are ready, as those of a pool that cannot start do.
    """

    def __init__(self, chaos: Chaos, diary: Path) -> None:
        super().__init__(daemon=True)
        self.chaos = chaos
        self.chance = random.Random(chaos.random.random())
        self.diary = diary
        self.killed: set[int] = set()
        self.has_killed_a_start = False
        self.is_over = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.is_over.wait(self.chance.uniform(0.02, 0.3)) and self.chaos.goes_on():
            workers = {each.pid for each in me.children()} - self.killed
            at_work = workers & self.at_work()
            if workers - at_work and not self.has_killed_a_start and self.chance.random() < 0.1:
                self.has_killed_a_start = True
                self.kill(self.chance.choice(sorted(workers - at_work)))
            elif at_work:
                self.kill(self.chance.choice(sorted(at_work)))

    def at_work(self) -> set[int]:
        if not self.diary.exists():
            return set()
        return {int(line.split()[2]) for line in self.diary.read_text().splitlines() if line.count(" ") == 3}

    def kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed.add(pid)


def one_map(chaos: Chaos, folder: Path, number: int) -> None:
    chance, diary = chaos.random, folder / f"diary-{number}"
    mode = chance.choice(["process", "process", "async_process"])
    way = chance.choice(["map", "stream", "unordered", "journal"])
    parallel = {
        "mode": mode, "workers": WORKERS, "worker_retries": RETRIES, "progress": False, "ordered": way != "unordered"
    }  # fmt: skip
    function: Any = work if mode == "process" else work_async
    bound: Any = Policy(parallel=parallel, retry=chance.choice([None, {"retries": 1, "min_delay": 0}])).apply(function)
    longest = chance.choice([0.002, 0.01, 0.03])
    items = [(each, chance.uniform(0, longest)) for each in range(ITEMS)]
    killer = Killer(chaos, diary)
    killer.start()
    try:
        results = run_map(bound, items, diary, way, folder / f"journal-{number}")
    except Exception as error:
        return chaos.lose(f"map {number} ({mode}, {way}): {error!r}"[:500])
    finally:
        killer.is_over.set()
        killer.join()
    chaos.count("worker kills", len(killer.killed))
    chaos.count("items", len(items))
    expected = [f"result {each}" for each in range(ITEMS)]
    if way == "unordered":
        results = sorted(results, key=expected.index)
    chaos.check(results == expected, f"map {number} ({mode}, {way}): results are missing or doubled")
    check_reruns(chaos, f"map {number} ({mode}, {way})", diary, items, killer.killed)
    diary.unlink()
    return None


def run_map(bound: Any, items: list[Any], diary: Path, way: str, journal: Path) -> list[str]:
    if way in ("map", "journal"):
        options = {"journal": journal} if way == "journal" else {}
        made = bound.map(items, diary=str(diary), **options)
        return asyncio.run(wait_for(made)) if asyncio.iscoroutine(made) else made
    made = bound.stream(items, diary=str(diary))
    return asyncio.run(read(made)) if hasattr(made, "__aiter__") else list(made)


async def wait_for(made: Any) -> Any:
    return await made


async def read(stream: Any) -> list[Any]:
    return [each async for each in stream]


def check_reruns(chaos: Chaos, name: str, diary: Path, items: list[tuple[int, float]], killed: set[int]) -> None:
    """An item runs again only if a worker that ran it was killed, and few that had ended do."""
    begun: dict[int, list[int]] = collections.defaultdict(list)
    ended: set[tuple[int, int]] = set()
    for line in diary.read_text().splitlines():
        what, number, pid, _ = line.split()
        if what == "begin":
            begun[int(number)].append(int(pid))
        else:
            ended.add((int(number), int(pid)))
    unreported: dict[int, float] = collections.defaultdict(float)
    for number, pids in begun.items():
        chaos.count("reruns", len(pids) - 1)
        for pid in pids[:-1]:
            if pid not in killed and pids[-1] not in killed:
                chaos.lose(f"{name}: item {number} ran again although its worker {pid} was not killed")
            elif (number, pid) in ended:
                unreported[pid] += items[number][1]
    for pid, seconds in unreported.items():
        chaos.check(
            seconds <= MOST_UNREPORTED, f"{name}: {seconds:.2f} s of finished work of worker {pid} was done again"
        )


def main() -> int:
    faulthandler.enable()
    chaos = begin(__file__, __doc__)
    chaos.count("worker kills", 0)
    with tempfile.TemporaryDirectory(prefix="opero-kills-") as folder:
        number = 0
        while chaos.goes_on():
            one_map(chaos, Path(folder), number)
            number += 1
    chaos.count("maps", number)
    return chaos.end()


if __name__ == "__main__":
    sys.exit(main())
