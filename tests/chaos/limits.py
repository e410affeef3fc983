"""Eight processes share a rate limit in redis, which is killed or frozen: no call is lost, no second is over the limit.

Each call sends a datagram to a server that counts, by the kernel's time of arrival. A process that the system wakes
late sends late, so two calls may come closer to each other than the limit has let them: `LATE` seconds are tolerated.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.chaos.harness import Chaos, begin
from tests.redis_server import RedisServer, find_program

PROCESSES, RATE, OUTAGE = 8, 200, 5.0
LATE = 0.05
WARMING = 12.0
"""Seconds until each process knows its share: two periods, and some."""
SO_TIMESTAMPNS = 35


class Counting:
    """A server that counts datagrams, by the moment at which the kernel has received them."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.port = self.socket.getsockname()[1]
        self.moments: list[float] = []
        self.by_process: Counter[bytes] = Counter()
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            data, about, _, _ = self.socket.recvmsg(64, 256)
            seconds, nanoseconds = struct.unpack("qq", about[0][2])
            self.moments.append(seconds + nanoseconds / 1e9)
            self.by_process[data] += 1

    def most_in_a_second(self, until: float) -> int:
        moments, first, most = sorted(each for each in list(self.moments) if each < until), 0, 0
        for last, moment in enumerate(moments):
            while moments[first] <= moment - 1:
                first += 1
            most = max(most, last - first + 1)
        return most

    def between(self, start: float, end: float) -> int:
        return sum(start <= each < end for each in list(self.moments))


def call(port: int, url: str, number: int, threads: int) -> None:
    """What each process does until its standard input ends. It prints the numbers of calls made and failed."""
    from opero import RateLimitPolicy

    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(("127.0.0.1", port))
    limited = RateLimitPolicy(rate=RATE, share="redis", share_as="chaos", url=url).apply(sender.send)
    made, failed, ends = [0] * threads, [0], threading.Event()

    def work(slot: int) -> None:
        while not ends.is_set():
            try:
                limited(b"%d" % number)
                made[slot] += 1
            except Exception as error:
                failed[0] += 1
                print(repr(error), file=sys.stderr)

    workers = [threading.Thread(target=work, args=(slot,)) for slot in range(threads)]
    for each in workers:
        each.start()
    sys.stdin.read()
    ends.set()
    for each in workers:
        each.join()
    print(sum(made), failed[0], flush=True)


def run(chaos: Chaos, server: RedisServer, outage: str) -> None:
    counting = Counting()
    processes = []
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for number in range(PROCESSES):
        command = [sys.executable, "-m", "tests.chaos.limits", "process", str(counting.port), server.url, str(number)]
        processes.append(
            subprocess.Popen(
                [*command, str(1 + number % 3)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=Path(__file__).parents[2],
            )
        )
    try:
        chaos.within(60, lambda: len(counting.by_process) == PROCESSES, "all processes call")
        time.sleep(WARMING)
        before = time.time()
        {"kill": server.kill, "freeze": server.freeze}[outage]()
        time.sleep(OUTAGE)
        {"kill": server.start, "freeze": server.thaw}[outage]()
        back = time.time()
        time.sleep(4)
        end = time.time()
    finally:
        ends = [each.communicate("")[0].split() for each in processes]
    arrived = len(counting.moments)
    chaos.within(10, lambda: len(counting.moments) == sum(int(each[0]) for each in ends), "all calls arrive")
    most = counting.most_in_a_second(end)
    chaos.count(f"calls with an outage ({outage})", arrived)
    chaos.figures[f"most in a second ({outage})"] = most
    chaos.figures[f"most in a second before ({outage})"] = counting.most_in_a_second(before)
    chaos.figures[f"a second before ({outage})"] = round(counting.between(before - 5, before) / 5)
    chaos.figures[f"a second while it lasts ({outage})"] = round(counting.between(before + 0.5, back) / (OUTAGE - 0.5))
    chaos.figures[f"in the second after 1 s ({outage})"] = counting.between(back + 1, back + 2)
    chaos.figures[f"a second after that ({outage})"] = round(counting.between(back + 2, end) / (end - back - 2))
    chaos.check(all(each[1] == "0" for each in ends), f"calls failed: {ends}")
    chaos.check(most <= RATE + 1 + RATE * LATE, f"{most} calls in a second")
    chaos.check(counting.between(back + 1, back + 2) > RATE * 0.7, "not resumed within a second")


def main() -> int:
    if sys.argv[1:2] == ["process"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        call(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        return 0
    chaos = begin(__file__, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            for outage in ("kill", "freeze"):
                server = RedisServer(find_program(), folder)
                server.start()
                try:
                    run(chaos, server, outage)
                finally:
                    server.kill()
            if not chaos.goes_on():
                return chaos.end()


if __name__ == "__main__":
    sys.exit(main())
