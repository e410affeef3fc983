"""The circuit breaker through bound functions: late answers, probes that hang, an operator, and threads."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from executors.steady import steady
from opero import CircuitOpenError, Policy
from opero.testing import VirtualClock


def test_a_late_answer_from_before_it_opened_neither_closes_nor_opens_it() -> None:
    clock = steady(VirtualClock())

    async def function(seconds: float, error: Exception | None) -> None:
        await asyncio.sleep(seconds)
        if error is not None:
            raise error

    bound = Policy(circuit_breaker={"consecutive_failures": 1, "open_for": 10}).apply(function, clock=clock)

    async def main() -> None:
        late = [
            asyncio.create_task(bound(seconds, error)) for seconds, error in ((5, None), (12, OSError()), (14, None))
        ]
        await asyncio.sleep(1)
        with pytest.raises(ConnectionError):
            await bound(0, ConnectionError())
        states = []
        for moment in (6, 11.5, 13, 15):
            await asyncio.sleep(1000 + moment - clock.monotonic())
            states.append(bound.binding.circuit_breaker.state)
        assert states == ["open", "half_open", "half_open", "half_open"]
        await asyncio.gather(*late, return_exceptions=True)
        await bound(0, None)
        assert bound.binding.circuit_breaker.state == "closed"

    clock.run(main())


def test_a_probe_that_never_returns_is_written_off_after_open_for() -> None:
    clock = steady(VirtualClock())

    async def function(seconds: float, error: Exception | None = None) -> str:
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return "done"

    bound = Policy(circuit_breaker={"consecutive_failures": 1, "open_for": 10}).apply(function, clock=clock)

    async def main() -> None:
        with pytest.raises(ConnectionError):
            await bound(0, ConnectionError())
        await asyncio.sleep(10)
        hangs = asyncio.create_task(bound(1e6))
        for _ in range(9):
            await asyncio.sleep(1)
            with pytest.raises(CircuitOpenError, match="its probes are under way"):
                await bound(0)
        await asyncio.sleep(1.1)
        assert await bound(0) == "done"
        assert bound.binding.circuit_breaker.state == "closed"
        hangs.cancel()

    clock.run(main())


def test_an_operator_forces_it_open_and_closed_and_resets_it(bind: Any, script: Any) -> None:
    function = script(1, *[ConnectionError()] * 4, 2)
    call = bind(Policy(circuit_breaker={"consecutive_failures": 2, "open_for": 5}), function)
    circuit = bind.bound.binding.circuit_breaker
    assert call() == 1
    circuit.force_open()
    bind.clock.advance(100)
    with pytest.raises(CircuitOpenError, match=r"forced open; reset\(\) closes it"):
        call()
    circuit.force_closed()
    for _ in range(4):
        with pytest.raises(ConnectionError):
            call()
    assert circuit.state == "forced_closed"
    circuit.reset()
    assert (call(), circuit.state, bind.bound.stats.rejections) == (2, "closed", 1)


@pytest.mark.parametrize("probes", [1, 4])
def test_threads_get_exactly_as_many_probes_through_to_the_function(probes: int) -> None:
    clock, gate, reached = steady(VirtualClock()), threading.Event(), []

    def function(fails: bool = False) -> None:
        if fails:
            raise ConnectionError
        reached.append(1)
        gate.wait(60)

    bound = Policy(circuit_breaker={"consecutive_failures": 1, "half_open_calls": probes}).apply(function, clock=clock)
    with pytest.raises(ConnectionError):
        bound(fails=True)
    clock.advance(60)
    rejected: list[int] = []

    def hammer() -> None:
        for _ in range(100):
            try:
                bound()
            except CircuitOpenError:
                rejected.append(1)
            if len(rejected) == 100 * (8 - probes):  # all others are through: the probes may end
                gate.set()
            if gate.is_set():
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert (len(reached), bound.stats.rejections) == (probes, len(rejected))
    assert len(rejected) == 100 * (8 - probes)
    assert bound.binding.circuit_breaker.state == "closed"
