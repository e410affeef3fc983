"""Calls and reloads in any order: what a call sees is one configuration, and no reload closes an open circuit."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from executors.steady import steady
from opero import CircuitOpenError, ConfigError, Registry
from opero.testing import VirtualClock

THRESHOLD = 3


class Reloads(RuleBasedStateMachine):
    """One profile with a breaker, one without; functions bound to each, sync and async, one with options of its own.

    Version n of the configuration says so in every field: its retries, delay, and fallback result belong together.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = steady(VirtualClock())
        self.version = 0
        self.open_for = 60
        self.failures = 0
        self.opened: float | None = None
        self.reopened = 0
        self.attempts = 0
        self.reload_at: int | None = None
        self.write()
        self.registry = Registry.load(self.folder.name, environ={})
        self.guarded = self.registry.bind(self.run, "guarded", clock=self.clock)
        self.sync = self.registry.bind(self.fail, "whole", clock=self.clock)
        self.async_ = self.registry.bind(self.fail_async, "whole", clock=self.clock)
        self.own = self.registry.bind(self.fail, "whole", clock=self.clock, min_delay=0)

    def write(self, extra: str = "") -> None:
        retries = self.version % 4
        (Path(self.folder.name) / "base.yaml").write_text(
            "policies:\n"
            f"  guarded: {{retry: {{retries: {retries}, min_delay: 0, retry_on: [KeyError]}}, "
            f"circuit_breaker: {{consecutive_failures: {THRESHOLD}, open_for: {self.open_for}}}}}\n"
            f"  whole: {{retry: {{retries: {retries}, min_delay: {self.version}, max_delay: 999, jitter: false, "
            f"backoff_factor: 1}}, fallback: {{default: {self.version}}}}}\n{extra}",
            "utf-8",
        )

    # What the functions do

    def run(self, fails: bool) -> str:
        if fails:
            raise ConnectionError
        return "fine"

    def attempt(self) -> None:
        self.attempts += 1
        if self.attempts == self.reload_at:
            self.reload_now()
        raise ConnectionError

    def fail(self) -> int:
        self.attempt()
        return -1

    async def fail_async(self) -> int:
        await asyncio.sleep(0)
        self.attempt()
        return -1

    # Reloads

    def reload_now(self) -> None:
        self.version += 1
        self.write()
        assert self.registry.reload().profiles

    @rule()
    def reload(self) -> None:
        self.reload_now()

    @rule(open_for=st.sampled_from([10, 60, 300]))
    def change_how_long_it_stays_open(self, open_for: int) -> None:
        self.open_for = open_for
        self.reload_now()

    @rule()
    def reload_what_is_wrong(self) -> None:
        before = self.registry.configuration, self.sync.policy
        self.write(extra="  worse: {retyr: 1}\n")
        try:
            self.registry.reload()
        except ConfigError:
            pass
        else:
            raise AssertionError
        assert (self.registry.configuration, self.sync.policy) == before
        self.write()

    # Calls

    def stays_open_for(self) -> int:
        return min(self.open_for * 2**self.reopened, 10 * self.open_for)

    @rule(seconds=st.sampled_from([1, 9, 30, 100]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(fails=st.booleans())
    def call_through_the_breaker(self, fails: bool) -> None:
        now = self.clock.monotonic()
        rejects = self.opened is not None and now < self.opened + self.stays_open_for()
        try:
            assert self.guarded(fails) == "fine"
        except CircuitOpenError:
            assert rejects
            return
        except ConnectionError:
            assert fails
        assert not rejects
        if not fails:
            self.failures, self.opened, self.reopened = 0, None, 0
            return
        self.failures += 1
        self.reopened += self.opened is not None
        if self.opened is not None or self.failures >= THRESHOLD:  # a probe that fails opens it again
            self.failures, self.opened = 0, now

    @rule(which=st.sampled_from(["sync", "async_", "own"]), reload_at=st.none() | st.integers(1, 4))
    def a_call_sees_one_configuration(self, which: str, reload_at: int | None) -> None:
        version, started = self.version, self.clock.monotonic()
        self.attempts, self.reload_at = 0, reload_at
        bound = getattr(self, which)
        result = self.clock.run(bound()) if which == "async_" else bound()
        self.reload_at = None
        retries = version % 4
        assert (result, self.attempts) == (version, retries + 1)
        waited = 0 if which == "own" else retries * version
        assert round(self.clock.monotonic() - started, 6) == waited

    @precondition(lambda self: self.opened is not None)
    @invariant()
    def an_open_circuit_stays_open_for_its_time(self) -> None:
        assert self.opened is not None
        still = self.clock.monotonic() < self.opened + self.stays_open_for()
        state = self.guarded.binding.circuit_breaker.state
        assert state == ("open" if still else "half_open")

    @invariant()
    def counts_go_on(self) -> None:
        if hasattr(self, "sync"):
            assert self.registry["whole"].retry.retries == self.version % 4  # type: ignore[union-attr]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestReloads = Reloads.TestCase
TestReloads.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_each_call_during_reloads_sees_one_configuration(tmp_path: Path) -> None:
    """Version n makes n + 1 attempts and answers n."""

    def write(version: int) -> None:
        (tmp_path / "base.yaml").write_text(
            f"policies: {{api: {{retry: {{retries: {version}, min_delay: 0, budget: false}}, "
            f"fallback: {{default: {version}}}}}}}"
        )

    write(0)
    registry = Registry.load(tmp_path, environ={})
    local = threading.local()

    def fail() -> int:
        local.attempts += 1
        raise ConnectionError

    bound = registry.bind(fail, "api")
    wrong: list[Any] = []
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            local.attempts = 0
            version = bound()
            if local.attempts != version + 1:
                wrong.append((version, local.attempts))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        write(turn % 5)
        registry.reload()
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bound.stats.calls > 0
