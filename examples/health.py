"""A health report: probes under tight timeouts, circuit breakers, and error counts, in one JSON document.

    python examples/health.py

opero has no health endpoint of its own. Probes are bound functions; what else a report needs, `.stats` and
`.binding.circuit_breaker` tell.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from loopback import Loopback

from opero import OperoError, Policy, opero

PROBE = Policy(timeout="300ms", retry={"retries": 1, "min_delay": "20ms"})


@opero(retries=0, circuit_breaker={"consecutive_failures": 2})
def charge(amount: int) -> None:
    """What the application does all day; its circuit breaker knows how that went."""
    raise ConnectionError("the payment gateway does not answer")


async def connects(host: str, port: int) -> None:
    """Whether somebody listens there."""
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()


async def hangs() -> None:
    """A component that accepts work and never answers."""
    await asyncio.sleep(60)


async def check(name: str, probe: Callable[[], Awaitable[object]]) -> tuple[str, dict[str, Any]]:
    started = asyncio.get_running_loop().time()
    try:
        await PROBE.apply(probe)()
        state: dict[str, Any] = {"ok": True}
    except (OperoError, OSError) as error:
        state = {"ok": False, "reason": type(error.__cause__ or error).__name__}
    return name, {**state, "seconds": round(asyncio.get_running_loop().time() - started, 1)}


async def report(probes: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, Any]:
    checks: dict[str, Any] = dict(await asyncio.gather(*(check(*each) for each in probes.items())))
    breaker = charge.binding.circuit_breaker
    if breaker is not None:
        checks["payments"] = {"ok": breaker.state == "closed", "circuit": breaker.state, **charge.stats.errors}
    failing = sum(not each["ok"] for each in checks.values())
    status = "healthy" if failing == 0 else "down" if failing == len(checks) else "degraded"
    return {"status": status, "checks": checks}


def main() -> None:
    for _ in range(3):
        with suppress(OperoError, OSError):
            charge(100)
    with Loopback(lambda path, headers: (200, "ok")) as service:
        port = int(service.url.rpartition(":")[2])

        async def listening() -> None:
            await connects("127.0.0.1", port)

        async def refused() -> None:
            await connects("127.0.0.1", 1)

        found = asyncio.run(report({"search": listening, "mail": refused, "archive": hangs}))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
