"""What several limits, estimates and a share for each key cost a call, and how much of a quota of tokens is used where
the estimates are four times too high."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.benchmarks.harness import Row, compare

from opero import Policy
from opero.testing import VirtualClock

OFTEN = 10**6
ONE: dict[str, Any] = {"rate": OFTEN, "burst": OFTEN}
SECONDS, TOKENS, QUOTA = 60.0, 500, 60_000


def nothing(tenant: str = "a", tokens: int = 1) -> int:
    return 1


async def nothing_async(tenant: str = "a", tokens: int = 1) -> int:
    return 1


def bound(rate_limit: Any, function: Any = nothing) -> Any:
    return Policy.model_validate({"rate_limit": rate_limit}).apply(function)


def used() -> Row:
    """How much of a quota a minute is used by calls whose estimate is four times what they take."""
    clock = VirtualClock()
    limits = [{"rate": QUOTA / SECONDS, "burst": 10 * TOKENS * 4, "cost": "tokens", "cost_from_result": int}]

    async def ask(tokens: int) -> int:
        await asyncio.sleep(0.5)
        return tokens // 4

    call = Policy.model_validate({"rate_limit": limits}).apply(ask, clock=clock)
    taken = 0

    async def caller() -> None:
        nonlocal taken
        while clock.monotonic() < begun + 10 * SECONDS:
            result = await call(4 * TOKENS)
            taken += result

    async def main() -> None:
        await asyncio.gather(*(caller() for _ in range(30)))

    begun = clock.monotonic()
    clock.run(main())
    ideal = QUOTA * 10 + 10 * TOKENS * 4
    return Row(
        "a quota of tokens, estimates four times too high",
        taken,
        "all of it",
        ideal,
        ideal / taken,
        1 / 0.95,
        unit="tokens",
    )


def run(rounds: int) -> list[Row]:
    one = bound(ONE)
    two = [{**ONE, "name": "requests"}, {**ONE, "name": "tokens", "cost": "tokens"}]
    settled = [two[0], {**two[1], "cost_from_result": int}]
    rows = [
        compare("two limits", bound(two), "one limit", one, rounds),
        compare("two limits, settled by the result", bound(settled), "one limit", one, rounds),
        compare("one limit for each tenant", bound({**ONE, "scope": {"by": "tenant"}}), "one limit", one, rounds),
        compare(
            "two limits, async",
            bound(two, nothing_async),
            "one limit",
            bound(ONE, nothing_async),
            rounds,
            call="await call()",
        ),
    ]
    return [*rows, used()]
