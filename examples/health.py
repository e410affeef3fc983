"""A health report: checks within tight limits, and what opero knows of circuits, in one JSON document.

python examples/health.py
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import asdict

from loopback import Loopback

from opero import HealthMonitor, OperoError, Policy, Registry, opero

registry = Registry({"payments": Policy(circuit_breaker={"consecutive_failures": 2})})
monitor = HealthMonitor(registry, critical=["payments"])


@opero(policy="payments", registry=registry)
def charge(amount: int) -> None:
    """What the application does all day; its circuit breaker knows how that went."""
    raise ConnectionError("the payment gateway does not answer")


async def connects(host: str, port: int) -> None:
    """Whether somebody listens there."""
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()


async def archive() -> None:
    """A component that accepts work and never answers."""
    await asyncio.sleep(60)


def main() -> None:
    for _ in range(3):
        with suppress(OperoError, OSError):
            charge(100)
    with Loopback(lambda path, headers: (200, "ok")) as service:
        port = int(service.url.rpartition(":")[2])
        monitor.register_health_check("search", lambda: connects("127.0.0.1", port))
        monitor.register_health_check("mail", lambda: connects("127.0.0.1", 1))
        monitor.register_health_check("archive", archive, timeout="300ms")
        results = monitor.run_all_health_checks_sync()
    checks = [{key: value for key, value in asdict(each).items() if value is not None} for each in results.values()]
    print(json.dumps({"status": monitor.get_overall_health(), "ready": monitor.is_ready(), "checks": checks}, indent=2))


if __name__ == "__main__":
    main()
