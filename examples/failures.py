"""What a failed call tells, how a circuit breaker stops asking, and how it recovers.

python examples/failures.py
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import requests
from loopback import Loopback

from opero import AllFailedError, CircuitOpenError, opero

is_down = True


def warehouse(path: str, _: Mapping[str, str]) -> tuple[int, Any]:
    return (503, "closed for stock-taking") if is_down else (200, {"stock": 12})


@opero(
    retries=2,
    min_delay="10ms",
    retry_on="requests.HTTPError",
    circuit_breaker={"consecutive_failures": 3, "open_for": "300ms"},
)
def stock(url: str, article: str) -> int:
    response = requests.get(f"{url}/stock/{article}", timeout=1)
    response.raise_for_status()
    return int(response.json()["stock"])


def main() -> None:
    global is_down
    breaker: Any = stock.binding.circuit_breaker
    with Loopback(warehouse) as service:
        try:
            stock(service.url, "tea")
        except AllFailedError as error:
            kinds = [type(each).__name__ for each in error.errors]
            print(f"{len(error.errors)} attempts failed: {', '.join(kinds)}; the last: {str(error.__cause__)[:16]}")

        try:
            stock(service.url, "coffee")
        except* requests.HTTPError as group:
            print(f"except* sees {len(group.exceptions)} errors; the circuit is {breaker.state}")

        try:
            stock(service.url, "cocoa")  # the third call in a row that fails opens the circuit
        except CircuitOpenError as error:
            print(f"the circuit is {breaker.state} after {type(error.__cause__).__name__}; no more retries")

        before = len(service.paths)
        try:
            stock(service.url, "tea")
        except CircuitOpenError as error:
            print(f"rejected at once, {len(service.paths) - before} requests; again in {error.retry_in:.1f} s")

        is_down = False
        time.sleep(0.35)
        print(f"after a rest: {stock(service.url, 'tea')} in stock, and the circuit is {breaker.state}")
        print(f"errors {stock.stats.errors}, rejections {stock.stats.rejections}, failures {stock.stats.failures}")


if __name__ == "__main__":
    main()
