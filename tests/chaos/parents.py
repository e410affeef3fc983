"""Kills programs while they map: their workers end, nothing of theirs stays, and the journal resumes without a loss.

`python -m tests.chaos.parents` starts programs that map with a journal, kills each at a random moment, and starts it
again until it comes to its end.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from tests.chaos.harness import Chaos, begin
from tests.chaos.kills import tell

from opero import Policy

ITEMS = 120
PROCESSES_END = 30.0
"""Seconds in which the workers of a killed program have to end; most take some ms."""
MOST_KILLS = 6
HANGS = 120.0
"""Seconds after which a program that is not killed hangs."""


def work(number: int, diary: str) -> dict[str, Any]:
    tell(diary, "begin", number)
    time.sleep(0.003)
    tell(diary, "end", number)
    return {"number": number, "text": "é" * (number % 50)}


def program(folder: Path, mode: str) -> None:
    """What is killed: a map with a journal, with limits that its workers share."""
    policy = Policy(
        parallel={"mode": mode, "workers": 2, "progress": False},
        rate_limit=5000,
        bulkhead={"max_concurrent": 4, "max_wait": 30},
        circuit_breaker=50,
    )
    bound: Any = policy.apply(work)
    print("ready", flush=True)
    results = bound.map(range(ITEMS), diary=str(folder / "diary"), journal=folder / "run.jsonl")
    (folder / "results.json").write_text(json.dumps(results))


def start(folder: Path, mode: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "TMPDIR": str(folder / "tmp"), "XDG_RUNTIME_DIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "tests.chaos.parents", "--program", str(folder), mode]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def recorded(journal: Path) -> set[int]:
    """The items of the whole lines of a journal."""
    found = set()
    if journal.exists():
        for line in journal.read_bytes().splitlines(keepends=True)[1:]:
            with contextlib.suppress(ValueError):
                if line.endswith(b"\n"):
                    found.add(json.loads(line)["i"])
    return found


def runs(diary: Path) -> collections.Counter[int]:
    lines = diary.read_text().splitlines() if diary.exists() else []
    return collections.Counter(int(line.split()[1]) for line in lines if line.startswith("begin"))


def moment(chance: random.Random) -> tuple[int, float]:
    """When to kill: once so many more items have begun, and so many seconds later."""
    return chance.choice([0, 1, 5, 20, 40]), chance.choice([0.0, 0.0, chance.uniform(0, 0.02), chance.uniform(0, 0.3)])


def await_moment(process: subprocess.Popen[bytes], diary: Path, when: tuple[int, float] | None) -> int | None:
    """Wait for the moment; return the exit code of a program that has ended before, else None."""
    if when is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(HANGS)
        return process.poll()
    items, seconds = when
    before, until = runs(diary).total(), time.monotonic() + HANGS
    while process.poll() is None and runs(diary).total() < before + items and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(seconds)
    return process.poll()


def one_program(chaos: Chaos, folder: Path) -> None:
    chance, mode = chaos.random, chaos.random.choice(["process", "process", "thread"])
    (folder / "tmp").mkdir(mode=0o700)
    journal, kills = folder / "run.jsonl", 0
    while True:
        done, before = recorded(journal), runs(folder / "diary")
        process = start(folder, mode)
        assert process.stdout is not None
        process.stdout.readline()
        is_last = kills >= MOST_KILLS or not chaos.goes_on()
        code = await_moment(process, folder / "diary", None if is_last else moment(chance))
        children = [] if code is not None else psutil.Process(process.pid).children(recursive=True)
        process.kill()  # for one that has ended, nothing
        process.wait()
        process.stdout.close()
        chaos.within(
            PROCESSES_END,
            lambda children=children: not any(map(is_alive, children)),
            f"the workers of a killed program ({mode}) end",
        )
        after = runs(folder / "diary")
        again = [number for number in done if after[number] > before[number]]
        chaos.check(not again, f"items {again} of the journal ran again ({mode})")
        if code is not None:
            break
        if is_last:
            return chaos.lose(f"a program ({mode}) hangs after {kills} kills")
        kills += 1
        chaos.count("parent kills")
    chaos.check(code == 0, f"a program that was not killed exited with {code} ({mode})")
    if code == 0:
        results = json.loads((folder / "results.json").read_bytes())
        expected = [{"number": number, "text": "é" * (number % 50)} for number in range(ITEMS)]
        chaos.check(results == expected, f"the results of a journal that was resumed are wrong ({mode})")
    chaos.count("items", ITEMS)
    chaos.count("reruns", sum(runs(folder / "diary").values()) - ITEMS)
    left = [str(each.relative_to(folder)) for each in (folder / "tmp").rglob("*") if not each.is_dir()]
    chaos.check(not left, f"files stay after {kills} kills and an ordinary end ({mode}): {left[:5]}")
    return None


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main() -> int:
    faulthandler.enable()
    if sys.argv[1:2] == ["--program"]:
        program(Path(sys.argv[2]), sys.argv[3])
        return 0
    chaos = begin(__file__, __doc__)
    chaos.count("parent kills", 0)
    while chaos.goes_on():
        with tempfile.TemporaryDirectory(prefix="opero-parents-") as folder:
            one_program(chaos, Path(folder))
        chaos.count("programs")
    return chaos.end()


if __name__ == "__main__":
    sys.exit(main())
