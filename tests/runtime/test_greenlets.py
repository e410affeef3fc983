"""Timeouts of functions in greenlets: the function itself is interrupted, and no other greenlet. In real time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

from opero.runtime.interruption import Expired
from opero.runtime.time_limits import run_within

pytestmark = pytest.mark.alone

SOON = 0.05
LONG = 5.0


def test_an_interruption_waits_until_the_functions_own_greenlet_runs() -> None:
    greenlet = pytest.importorskip("greenlet")
    ended = []

    def other() -> None:
        time.sleep(3 * SOON)
        ended.append("other")

    def function() -> None:
        greenlet.greenlet(other).switch()
        time.sleep(LONG)

    started = time.monotonic()
    with pytest.raises(Expired):
        run_within(SOON, function)
    assert ended == ["other"]
    assert time.monotonic() - started < LONG / 2


PATCHED = """
    import gevent.monkey
    gevent.monkey.patch_all()
    import gevent, time
    from opero import CallTimeoutError, Policy

    log = []

    def slow():
        try:
            time.sleep(5)
        finally:
            log.append("interrupted")

    def other():
        for _ in range(10):
            time.sleep(0.02)
        log.append("other")

    def stubborn():
        try:
            time.sleep(5)
        except BaseException:
            time.sleep(30)

    def outcome(function, *args):
        try:
            return function(*args)
        except CallTimeoutError:
            return "timeout"

    limited = Policy(timeout=0.1).apply(slow)
    greenlets = [gevent.spawn(other), *(gevent.spawn(outcome, limited) for _ in range(3))]
    assert outcome(limited) == "timeout"
    gevent.joinall(greenlets)
    assert [each.value for each in greenlets] == [None, "timeout", "timeout", "timeout"]
    assert sorted(log) == ["interrupted"] * 4 + ["other"], log
    assert outcome(Policy(timeout=0.1).apply(stubborn)) == "timeout"
    assert outcome(Policy(timeout=9).apply(lambda: 5)) == 5
    assert outcome(Policy(timeout=0.1).apply(lambda: Policy(timeout=9).apply(slow)())) == "timeout"
    print("passed")
"""


def test_under_gevent_each_function_is_interrupted_in_its_greenlet() -> None:
    pytest.importorskip("gevent")
    program = [sys.executable, "-c", textwrap.dedent(PATCHED)]
    assert subprocess.run(program, capture_output=True, text=True, timeout=60, check=False).stdout == "passed\n"
