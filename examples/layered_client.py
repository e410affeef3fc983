"""Three layers, each with one concern: the carrier's client retries, the service remembers, the page degrades.

    python examples/layered_client.py

Only the client retries. If the service retried as well, every attempt of the one would be repeated by the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests
from loopback import Loopback

from opero import Policy, opero

CARRIER = Policy(
    retry={"retries": 2, "min_delay": "20ms", "retry_on_status": "5xx"},
    circuit_breaker={"consecutive_failures": 20},
    rate_limit={"rate": "200/s", "burst": 10},
    timeout={"total": "3s", "attempt": "1s"},
)


@dataclass(frozen=True)  # equal clients share cached results, as their fields are the same
class CarrierClient:
    """The transport: how to talk to the carrier, and what to do when that fails."""

    url: str
    tokens: tuple[str, ...]

    @opero(policy=CARRIER, arg_fallback="token")
    def request(self, path: str, token: list[str]) -> Any:
        response = requests.get(f"{self.url}{path}", headers={"X-Token": token[0]}, timeout=1)
        response.raise_for_status()
        return response.json()


@dataclass(frozen=True)
class Parcels:
    """The service: what a parcel's state means to this application. It answers even if the carrier does not."""

    carrier: CarrierClient

    @opero(policy=Policy(cache="10m", fallback={"default": "unknown"}))
    def state(self, number: str) -> str:
        return str(self.carrier.request(f"/parcels/{number}", list(self.carrier.tokens))["state"])


def page(parcels: Parcels, numbers: list[str]) -> dict[str, str]:
    """The page: all parcels at a time, in threads."""
    return dict(zip(numbers, parcels.state.map(numbers), strict=True))


def carrier() -> Any:
    """A carrier that refuses an old token, hiccups once about B-2, and has lost C-3."""
    seen: Counter[str] = Counter()

    def answer(path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        if headers["X-Token"] == "old-token":
            return 401, "this token has expired"
        seen[path] += 1
        if path.endswith("C-3") or (path.endswith("B-2") and seen[path] == 1):
            return 503, "try again later"
        return 200, {"state": "delivered" if path.endswith("A-1") else "on its way"}

    return answer


def main() -> None:
    with Loopback(carrier()) as service:
        parcels = Parcels(CarrierClient(service.url, ("old-token", "new-token")))
        for number, state in page(parcels, ["A-1", "B-2", "C-3"]).items():
            print(f"{number}: {state}")
        before = len(service.paths)
        page(parcels, ["A-1", "B-2"])
        print(f"asked again: {len(service.paths) - before} requests, {Parcels.state.stats.cache_hits} cache hits")
        client = CarrierClient.request.stats
        print(f"client: {client.calls} calls, {client.attempts} attempts, {client.recoveries} recoveries")


if __name__ == "__main__":
    main()
