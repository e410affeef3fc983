"""Interrupts calls at each point at which Python can: `python -m tests.chaos.interrupts [--seconds N]`.

Python runs a signal handler, and so raises KeyboardInterrupt or opero's own interruption of a timeout, where a function
begins, where a call of a function written in C has returned, and where a loop jumps back; nowhere else. This program
raises at the first such point of a call, at the second, and so on until the call comes to its end, in each scenario. It
checks each time that nothing is held any more and that the next call gets what it wants at once.

From Python 3.12 on, `sys.monitoring` tells of exactly these points. Python 3.11 tells of most by `sys.setprofile`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import opero
from opero import OperoError, Policy, Registry
from opero.cache.single_flight import current_computations
from opero.executors.by_key import ByKey
from opero.parallel.workers import process as processes
from opero.runtime import forking, interruption
from opero.testing import VirtualClock

PACKAGE = os.path.dirname(opero.__file__) + os.sep
NOT_ITS_OWN = tuple(PACKAGE + each + os.sep for each in ("testing", "cli"))
MOST = 20_000
"""No call has as many points; one that does would never end."""
PATIENCE = 30.0
"""Seconds after which something is held for ever."""


# Points


def is_opero(name: str) -> bool:
    return name == "<opero>" or (name.startswith(PACKAGE) and not name.startswith(NOT_ITS_OWN))


class Points:
    """Counts the points of the calling thread that lie in opero's modules, and does something at one of them.

    Args:
        at: the number of the point, from 0 on.
        action: receives the frame; returns whether it is done, else it is called again at the next point.
    """

    def __init__(self, at: int, action: Callable[[FrameType], bool]) -> None:
        self.at = at
        self.count = 0
        self.action = action
        self.done = False
        self.thread = threading.get_ident()
        self.where = ""

    def pass_by(self, frame: FrameType) -> None:
        if self.done or not is_opero(frame.f_code.co_filename):
            return
        self.count += 1
        if self.count > self.at:
            self.where = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}"
            self.done = True  # before it raises
            self.done = self.action(frame)

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._monitored() if sys.version_info >= (3, 12) else self._profiled():
            yield

    @contextmanager
    def _profiled(self) -> Iterator[None]:
        def profile(frame: FrameType, event: str, _: object) -> None:
            if event in ("call", "c_return"):
                self.pass_by(frame)

        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(None)

    if sys.version_info >= (3, 12):

        @contextmanager
        def _monitored(self) -> Iterator[None]:
            monitoring, tool = sys.monitoring, sys.monitoring.DEBUGGER_ID
            events = monitoring.events

            def passed(code: Any, *_: object) -> Any:
                if not is_opero(code.co_filename):
                    return monitoring.DISABLE
                if threading.get_ident() == self.thread:
                    self.pass_by(sys._getframe(1))
                return None

            def jumped(code: Any, start: int, end: int) -> Any:
                return passed(code) if end < start else monitoring.DISABLE

            def returned(code: Any, *_: object) -> None:  # an event that cannot be disabled by itself
                passed(code)

            def ignored(*_: object) -> None:
                pass

            callbacks = {
                events.PY_START: passed,
                events.PY_RESUME: passed,
                events.JUMP: jumped,
                events.CALL: ignored,
                events.C_RETURN: returned,
                events.C_RAISE: ignored,
            }
            monitoring.use_tool_id(tool, "interrupts")
            try:
                for event, callback in callbacks.items():
                    monitoring.register_callback(tool, event, callback)
                monitoring.set_events(tool, events.PY_START | events.PY_RESUME | events.JUMP | events.CALL)
                monitoring.restart_events()
                yield
            finally:
                monitoring.set_events(tool, 0)
                for event in callbacks:
                    monitoring.register_callback(tool, event, None)
                monitoring.free_tool_id(tool)


def press_ctrl_c(_: FrameType) -> bool:
    raise KeyboardInterrupt


def ring(frame: FrameType) -> bool:
    """Let the time of a timeout be over: opero interrupts the call here, or at a later point."""
    if (
        signal.getsignal(signal.SIGALRM) is not interruption._on_alarm
        or frame.f_code is interruption._Alarm.enter.__code__
    ):
        return False  # the alarm is not set yet: one that rang would be the program's own
    for limit in interruption._alarm.limits:
        if limit.fired is None:
            limit.due = min(limit.due, time.monotonic())
    interruption._on_alarm(signal.SIGALRM, frame)
    return False


# Scenarios


class Scenario:
    """A bound function, what is done with it, and what has to be free afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock()

    def prepare(self) -> None:
        """What happens before the call that is interrupted."""

    def call(self) -> object:
        """The call."""
        raise NotImplementedError

    def check(self) -> None:
        """Nothing is held, and the next call gets what it wants."""

    def end(self) -> None:
        """Leave nothing behind."""


def check_process() -> None:
    """Check what belongs to no bound function."""
    assert current_computations.get() == (), "a computation of the context has never ended"
    assert not forking.uninterrupted, "this thread is never interrupted again"
    for reference, name in forking._renewed.copy().items():
        owner = reference()
        lock = None if owner is None else forking._lock_of(owner, name)
        assert lock is None or not lock._is_owned(), f"the lock of {owner!r} is taken"
    assert not forking._taken


def soon(condition: Callable[[], bool], text: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, text
        time.sleep(0.001)


def check_bound(bound: Any) -> None:
    executors = bound.binding.pipeline.executors
    cache, bulkhead, limit, values = (executors.get(each) for each in ("cache", "bulkhead", "rate_limit", "values"))
    for kind in ("circuit_breaker", "bulkhead", "rate_limit"):
        table = getattr(executors.get(kind), "limiter", None)
        if isinstance(table, ByKey):
            assert [entry.calls for entry in table.live.values()] == [0] * len(table.live), "a key has calls for ever"
            for key in list(table.live):
                with table.using(key) as executor:
                    if kind == "bulkhead":
                        assert executor.running == 0, "slots are lost"
                        assert not executor.home.queue, "a call waits in the queue for ever"
                    elif kind == "rate_limit":
                        assert (executor.queued, executor._waiting) == (0, {})
            bulkhead, limit = (None if each is executors[kind] else each for each in (bulkhead, limit))
    if cache is not None:
        # One whose event loop has been closed is abandoned by the next call that wants its result; a refresh in the
        # background, which the check itself may have begun, ends after a while, and then gives its lock back.
        running = cache.single_flight.running
        soon(lambda: all(each.is_orphan for each in list(running.values())), "a computation never ends")
        if cache.is_shared:
            mutex = cache.store.mutex(cache.key(("k",), {}))
            soon(lambda: not mutex.locks.holders, "a lock between processes is taken")
            soon(lambda: not is_locked(mutex.locks.path), "the file has a lock that nobody knows of")
    if bulkhead is not None:
        if "hedge" in executors:
            soon(lambda: bulkhead.running == 0, "slots are lost")  # an attempt ends in its thread
        assert bulkhead.running == 0, "slots are lost"
        assert not bulkhead.home.queue, "a call waits in the queue for ever"
    if limit is not None:
        assert limit.limiter.queued == 0
        assert limit.limiter._waiting == {}
    if values is not None:
        loads = [load for of_owner in values.home.memory.running.values() for load in of_owner.values()]
        assert not any(loads), "a value looks busy for ever"


def is_locked(path: str) -> bool:
    """Whether this process has locked a byte of a file, by what the kernel knows."""
    if not os.path.exists("/proc/locks"):
        return False
    inode, me = os.stat(path).st_ino, str(os.getpid())
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "POSIX" in fields and me in fields and any(each.endswith(f":{inode}") for each in fields):
            return True
    return False


POLICIES: dict[str, dict[str, Any]] = {
    "retry": {"retry": {"retries": 3, "min_delay": 0.1}},
    "memory": {"cache": {"ttl": 60}},
    "disk": {"cache": {"ttl": 60, "backend": "disk"}},
    "rate limit": {"rate_limit": {"rate": 2, "burst": 1}},
    "timeout": {"timeout": {"total": 3000, "attempt": 500}},
    "breaker": {"circuit_breaker": {"consecutive_failures": 1, "open_for": 1000}},
    "breaker by rate": {"circuit_breaker": {"failure_rate": 0.5, "window": 4, "min_calls": 1, "open_for": 1000}},
    "bulkhead": {"bulkhead": {"max_concurrent": 1, "max_wait": 50}},
    "hedge": {"hedge": {"after": 500, "budget": 1}, "bulkhead": {"max_concurrent": 2}},
    "values": {"fallback": {"arg": "model", "values": ["a", "b"], "order": "least_loaded"}},
    "fallback": {"fallback": {"default": "k"}},
}
ALL = {name: policy for each in POLICIES.values() for name, policy in each.items() if name != "hedge"}
ALL |= POLICIES["bulkhead"]
ALL["fallback"] = POLICIES["values"]["fallback"]
KEYED = {kind: {**ALL[kind], "scope": {"by": "model"}} for kind in ("circuit_breaker", "rate_limit", "bulkhead")}
POLICIES |= {f"{kind} by key": {kind: policy} for kind, policy in KEYED.items()}
POLICIES["all by key"] = ALL | KEYED | {"cache": {"enabled": False, "ttl": 60}}
POLICIES["all, memory"] = ALL | POLICIES["memory"]
POLICIES["all, disk"] = ALL | POLICIES["disk"]


class Calls(Scenario):
    """Calls of one function that fails at first; its circuit is half open."""

    def __init__(self, folder: Path, policy: dict[str, Any], *, is_async: bool) -> None:
        super().__init__(folder)
        if policy.get("cache", {}).get("backend") == "disk":
            policy = policy | {"cache": policy["cache"] | {"cache_dir": folder}}
        self.policy = policy
        self.is_async = is_async
        self.failures = 0

        def fetch(key: str, model: str = "a") -> str:
            if self.failures:
                self.failures -= 1
                raise ConnectionError
            return key

        async def fetch_async(key: str, model: str = "a") -> str:
            await asyncio.sleep(0)
            return fetch(key)

        self.bound: Any = Policy(**policy).apply(fetch_async if is_async else fetch, clock=self.clock)

    def run(self, key: str = "k") -> str:
        result: str = self.clock.run(self.bound(key)) if self.is_async else self.bound(key)
        return result

    def prepare(self) -> None:
        self.run("first")  # resolves
        if "circuit_breaker" in self.policy:
            self.failures = 100
            with suppress(ConnectionError, OperoError):
                self.run("failing")
            self.failures = 0
            self.clock.advance(1200)
        elif "retry" in self.policy or "values" in self.policy:
            self.failures = 1

    def call(self) -> str:
        return self.run()

    def check(self) -> None:
        if self.is_async:
            gc.collect()  # of coroutines whose event loop has been interrupted, and which never continue
        check_bound(self.bound)
        self.failures = 0
        self.clock.advance(1)  # for the permit that the call may have used
        assert self.run() == "k"
        if "circuit_breaker" in self.policy:
            breaker = self.bound.binding.circuit_breaker
            if isinstance(breaker, ByKey):  # the call of this check has closed one of them
                found = [entry.executor.own.circuit for entry in breaker.live.values()]
                assert "closed" in [each.state for each in found]
                assert all(each.state != "half_open" or each.probes_begun == each.probes_passed for each in found), (
                    "a probe"
                )
            else:
                assert breaker.state == "closed"
        check_bound(self.bound)


class Stale(Calls):
    """A call that is answered by a stale result, and refreshes it in the background."""

    def prepare(self) -> None:
        self.run()
        self.clock.advance(100)

    def check(self) -> None:
        until = time.monotonic() + PATIENCE
        while self.bound.binding.cache.single_flight.running:
            assert time.monotonic() < until, "a refresh never ends"
            time.sleep(0.001)
        super().check()


class Queue(Scenario):
    """A call that waits for a slot, which a thread gives back meanwhile."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)

        def use(seconds: float) -> float:
            begun.release()
            if seconds:
                ended.acquire(timeout=PATIENCE)
            return seconds

        begun, ended = threading.Semaphore(0), threading.Semaphore(0)
        self.bound: Any = Policy(bulkhead={"max_concurrent": 1, "max_wait": 50}).apply(use)
        self.bound(0)
        begun.acquire()
        self.begun, self.ended = begun, ended

    def prepare(self) -> None:
        self.other = threading.Thread(target=self.bound, args=(1,))
        self.other.start()
        self.begun.acquire()
        self.home = self.bound.binding.pipeline.executors["bulkhead"].home
        self.is_over = False
        self.releasing = threading.Thread(target=self.release)
        self.releasing.start()

    def release(self) -> None:
        while not self.home.queue and not self.is_over:
            time.sleep(0.0001)
        self.ended.release()

    def call(self) -> object:
        return self.bound(0)

    def check(self) -> None:
        self.is_over = True
        for each in (self.releasing, self.other):
            each.join(PATIENCE)
            assert not each.is_alive(), "a thread hangs"
        check_bound(self.bound)
        assert self.bound(0) == 0

    def end(self) -> None:
        self.is_over = True


class Stream(Scenario):
    """A generator under all policies that it can have."""

    def prepare(self) -> None:
        failures = [ConnectionError()]

        def items() -> Iterator[int]:
            if failures:
                raise failures.pop()
            yield from range(3)

        self.bound: Any = Policy(
            retry={"min_delay": 0.1},
            bulkhead={"max_concurrent": 1, "max_wait": 50},
            rate_limit="100/s",
            timeout={"attempt": 500, "idle": 500, "total": 5000},
            circuit_breaker={"consecutive_failures": 2, "open_for": 0.05},
        ).apply(items, clock=self.clock)

    def call(self) -> object:
        return list(self.bound())

    def check(self) -> None:
        gc.collect()
        check_bound(self.bound)
        self.clock.advance(1)
        assert list(self.bound()) == [0, 1, 2]


class Reload(Scenario):
    """A registry that is reloaded."""

    number = 0

    def prepare(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.file = self.folder / "base.yaml"
        self.write()
        self.registry = Registry.load(self.folder, environ={})
        self.bound: Any = self.registry.bind(lambda key: key, "api", clock=self.clock)
        self.other: Any = self.registry.bind(lambda key: -key, "api", clock=self.clock)
        assert (self.bound(1), self.other(1)) == (1, -1)
        self.write()

    def write(self) -> None:
        type(self).number += 1
        policy = (
            f"{{retry: {self.number % 7 + 1}, bulkhead: {self.number % 5 + 2}, circuit_breaker: {self.number % 3 + 1}}}"
        )
        self.file.write_text(f"policies: {{api: {policy}}}")

    def call(self) -> object:
        return self.registry.reload()

    def check(self) -> None:
        check_bound(self.bound)
        check_process()
        done: list[object] = []
        self.write()
        thread = threading.Thread(target=lambda: done.append(self.registry.reload()), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert done, "the next reload hangs"
        for bound in (self.bound, self.other):
            assert abs(bound(2)) == 2
            assert bound.binding.pipeline.policy.bulkhead.max_concurrent == self.number % 5 + 2
            check_bound(bound)


class Map(Scenario):
    """A map in threads, with a journal."""

    mode = "thread"

    def prepare(self) -> None:
        policy: dict[str, Any] = {"parallel": {"mode": self.mode, "workers": 2, "progress": False}, "bulkhead": 2}
        self.bound: Any = Policy.model_validate(policy).apply(double)
        self.folder.mkdir(exist_ok=True)

    def call(self) -> object:
        return self.bound.map(range(5), journal=self.folder / "journal")

    def check(self) -> None:
        until = time.monotonic() + PATIENCE
        while self.bound.binding.pipeline.executors["bulkhead"].running:
            assert time.monotonic() < until, "slots are lost"
            time.sleep(0.001)
        done: list[object] = []

        def again() -> None:
            try:
                done.append(self.call())
            except Exception as error:
                done.append(error)

        thread = threading.Thread(target=again, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert done == [[0, 2, 4, 6, 8]], f"the next map gives {done}"


class ProcessMap(Map):
    """A map in processes."""

    mode = "process"


def double(number: int) -> int:
    return 2 * number


def scenarios() -> dict[str, Callable[[Path], Scenario]]:
    found: dict[str, Callable[[Path], Scenario]] = {}
    for name, policy in POLICIES.items():
        for kind in ("sync", "async"):

            def made(folder: Path, policy: Any = policy, kind: str = kind) -> Scenario:
                return Calls(folder, policy, is_async=kind == "async")

            found[f"{name}, {kind}"] = made
    for backend in ("memory", "disk"):
        cache = {"cache": {"ttl": 60, "stale_ttl": 1000, "backend": backend}}
        found[f"stale, {backend}"] = lambda folder, cache=cache: Stale(folder, cache, is_async=False)
    return found | {"queue": Queue, "stream": Stream, "reload": Reload, "map": Map, "process map": ProcessMap}


# The sweep


class LostError(Exception):
    """Something is held after an interruption."""


def attempt(make: Callable[[Path], Scenario], how: str, at: int, folder: Path) -> int:
    """Interrupt one call at one point, if it has that many; return how many it has passed by.

    Raises:
        LostError: something is held afterwards.
    """
    scenario = make(folder)
    scenario.prepare()
    gc.disable()
    points = Points(at, ring if how == "timeout" else press_ctrl_c)
    ended = "came to its end"
    try:
        with points.counted():
            if how == "timeout":
                interruption.run_under_alarm(PATIENCE * 100, scenario.call)
            else:
                scenario.call()
    except (KeyboardInterrupt, interruption.Expired) as error:
        ended = "was interrupted"
        traceback.clear_frames(error.__traceback__)
    except OperoError as error:  # such as an open circuit, after the function has failed as it should
        ended = f"failed: {error}"
    if points.count <= at:
        scenario.check()
        scenario.end()
        return points.count
    try:
        check_process()
        scenario.check()
        check_process()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "the timer runs"
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL, "the alarm has not been given back"
    except Exception as error:
        trace = "".join(traceback.format_exception(error)[-2:])
        raise LostError(f"point {at}, {points.where}: the call {ended}, then: {error!r}\n{trace}") from None
    finally:
        scenario.end()
        gc.enable()
    return points.count


class Sweep:
    """Interrupts the calls of scenarios.

    Attributes:
        count: how many points that were.
        lost: what was held afterwards.
    """

    def __init__(self, names: list[str]) -> None:
        known = scenarios()
        self.pairs = [(name, how, known[name]) for name in names for how in ("Ctrl-C", "timeout")]
        self.count = 0
        self.lost: list[str] = []
        self.root = Path(tempfile.mkdtemp(prefix="opero-interrupts-"))
        sys.unraisablehook = lambda _: None  # an interruption of a finalizer is printed and lost, as Python has it
        warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that an interruption has kept from beginning

    def one(self, pair: tuple[str, str, Callable[[Path], Scenario]], at: int) -> int:
        """Interrupt a call at a point; return how many it has passed by."""
        name, how, make = pair
        self.count += 1
        folder = self.root / str(self.count)
        try:
            return attempt(make, how, at, folder)
        except LostError as error:
            self.lost.append(f"{name}, {how}, {error}")
            return at + 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def all(self, step: int, most: float) -> None:
        """Interrupt them at each `step`-th point."""
        for pair in self.pairs:
            at = 0
            while self.count < most and self.one(pair, at) > at:
                at += step

    def some(self, seconds: float, random: Random) -> None:
        """Interrupt them at points of chance, for so long."""
        until = time.monotonic() + seconds
        lengths: dict[str, int] = {}
        while time.monotonic() < until:
            pair = random.choice(self.pairs)
            key = f"{pair[0]}, {pair[1]}"
            if key not in lengths:
                lengths[key] = self.one(pair, MOST)
            else:
                self.one(pair, random.randrange(lengths[key] or 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="points of chance, for so long; default: all points")
    parser.add_argument("--seed", type=int, help="of these points")
    parser.add_argument("--count", type=float, default=float("inf"), help="the first so many points")
    parser.add_argument("--step", type=int, default=1, help="only each n-th point")
    parser.add_argument("names", nargs="*", help="scenarios; default: all")
    options = parser.parse_args()
    sweep = Sweep(options.names or list(scenarios()))
    if options.seconds is None:
        sweep.all(options.step, options.count)
    else:
        sweep.some(options.seconds, Random(options.seed))
    processes.end_all()
    shutil.rmtree(sweep.root, ignore_errors=True)
    print(*sweep.lost[:20], sep="\n", file=sys.stderr, end="\n" if sweep.lost else "")
    print(f"interrupts: {sweep.count:,} points, {len(sweep.lost)} lost")
    return 1 if sweep.lost else 0


if __name__ == "__main__":
    sys.exit(main())
