"""Two processes, threads and event loops use one disk cache while bits of its file are flipped: no wrong value.

The files are damaged where they lie, pages and log alike, as by a disk that fails. Calls may compute again, as the
file is set aside when SQLite finds it damaged, but they return what the function returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.chaos.harness import Chaos, begin

from opero import Policy

KEYS = 60
THREADS = 3


def value_of(number: int, kind: str) -> dict[str, Any]:
    return {"kind": kind, "number": number, "text": f"value {number} " * (number % 40), "list": [number, number / 2]}


class User:
    """The functions of one process, and what it has found."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.until = time.monotonic() + seconds
        self.seed = seed
        self.calls = self.computed = 0
        self.wrong: list[str] = []
        cache: dict[str, Any] = {"backend": "disk", "ttl": 1.5, "stale_ttl": 0.5, "cache_dir": folder, "tags": "all"}
        self.functions: dict[str, Any] = {}
        self.coroutines: dict[str, Any] = {}
        for serializer, secret in (("pickle", None), ("json", None), ("signed_pickle", "sixteen bytes or more")):

            def compute(number: int, kind: str = serializer) -> dict[str, Any]:
                self.computed += 1
                return value_of(number, kind)

            async def compute_async(number: int, kind: str = serializer) -> dict[str, Any]:
                self.computed += 1
                await asyncio.sleep(0)
                return value_of(number, kind)

            policy = Policy.model_validate({"cache": cache | {"serializer": serializer, "secret": secret}})
            self.functions[serializer] = policy.apply(compute)
            self.coroutines[serializer] = policy.apply(compute_async)

    def check(self, result: Any, number: int, kind: str) -> None:
        self.calls += 1
        if result != value_of(number, kind):
            self.wrong.append(f"{kind} {number}: {result!r:.300}")

    def in_thread(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        while time.monotonic() < self.until:
            key, kind = chance.randrange(KEYS), chance.choice(list(self.functions))
            function = self.functions[kind]
            try:
                self.check(function(key), key, kind)
                if chance.random() < 0.01:
                    function.cache_delete(key)
                if chance.random() < 0.001:
                    function.cache_clear()
            except Exception as error:
                self.wrong.append(f"{kind} {key}: {error!r:.300}")

    async def in_loop(self) -> None:
        chance = random.Random(self.seed * 100 + 99)

        async def one() -> None:
            key, kind = chance.randrange(KEYS), chance.choice(list(self.coroutines))
            try:
                self.check(await self.coroutines[kind](key), key, kind)
            except Exception as error:
                self.wrong.append(f"{kind} {key}: {error!r:.300}")

        while time.monotonic() < self.until:
            await asyncio.gather(*(one() for _ in range(5)))

    def run(self) -> None:
        threads = [threading.Thread(target=self.in_thread, args=(each,)) for each in range(THREADS)]
        threads.append(threading.Thread(target=lambda: asyncio.run(self.in_loop())))
        for each in threads:
            each.start()
        for each in threads:
            each.join()


def damage(folder: Path, chance: random.Random) -> int:
    """Flip a bit of a few bytes of the cache's files; return of how many."""
    flipped = 0
    for path in folder.glob("opero.sqlite3*"):
        if path.suffix == ".sqlite3-shm" or "damaged" in path.name or chance.random() < 0.5:
            continue  # the -shm file is memory that SQLite shares, which no disk can damage
        with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for _ in range(chance.choice([1, 1, 3]) if size else 0):
                file.seek(chance.randrange(size))
                byte = file.read(1)
                if byte:
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte[0] ^ (1 << chance.randrange(8))]))
                    flipped += 1
    return flipped


def main() -> int:
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    if sys.argv[1:2] == ["--user"]:
        user = User(Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
        user.run()
        print(user.calls, user.computed)
        print(*user.wrong, sep="\n")
        return 0
    chaos = begin(__file__, __doc__)
    number = 0
    while chaos.goes_on():
        with tempfile.TemporaryDirectory(prefix="opero-stores-") as folder:
            one_round(chaos, Path(folder), min(20.0, max(3.0, chaos.seconds - chaos.elapsed)), number)
        number += 1
    return chaos.end()


def one_round(chaos: Chaos, folder: Path, seconds: float, number: int) -> None:
    folder.chmod(0o700)
    command = [sys.executable, "-m", "tests.chaos.stores", "--user", str(folder), f"{seconds}"]
    processes = [
        subprocess.Popen([*command, str(chaos.seed + 2 * number + each)], stdout=subprocess.PIPE, text=True)
        for each in range(2)
    ]
    while any(each.poll() is None for each in processes):
        time.sleep(chaos.random.uniform(0.0, 0.05))
        chaos.count("bits flipped", damage(folder, chaos.random))
        if chaos.elapsed > chaos.seconds + 120:
            chaos.lose("a process hangs")
            for each in processes:
                each.kill()
    for each in processes:
        out, _ = each.communicate()
        first, *wrong = out.splitlines() or ["0 0"]
        calls, computed = map(int, first.split())
        chaos.count("calls", calls)
        chaos.count("computed", computed)
        chaos.check(each.returncode == 0, f"a process ended with {each.returncode}")
        for line in filter(None, wrong):
            chaos.lose(line)
    chaos.count("files set aside", len(list(folder.glob("*.damaged"))))


if __name__ == "__main__":
    sys.exit(main())
