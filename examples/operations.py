"""A deployment that is tuned while it runs: variables over files, a look at what holds, reloading, and bad edits.

python examples/operations.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from opero import ConfigError, Registry, opero

BASE = """\
policies:
  billing:
    retry: {retries: 2, retry_on: [ConnectionError]}
    circuit_breaker: 3
"""
PRODUCTION = """\
policies:
  billing: {rate_limit: 100/s, timeout: 20s}
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, production = Path(folder, "base.yaml"), Path(folder, "production.yaml")
        base.write_text(BASE, encoding="utf-8")
        production.write_text(PRODUCTION, encoding="utf-8")
        os.environ.update(OPERO_ENV="production", OPERO_BILLING_RATE_LIMIT="40/s")
        registry = Registry.load(folder)

        @opero(policy="billing", registry=registry)
        def invoice(customer: str) -> str:
            return f"invoice for {customer}"

        registry.check()  # before the first call: does everything fit?
        for path in ("rate_limit.rate", "timeout.total", "retry.retries"):
            leaf = registry.explain("billing")[path]
            print(f"{path:16} {leaf.value!s:5} from {Path(leaf.source.name).name}")

        print(invoice("Ada"))
        breaker: Any = invoice.binding.circuit_breaker
        breaker.force_open()  # an operator stops calls to a broken service

        production.write_text(PRODUCTION.replace("20s", "45s"), encoding="utf-8")
        print("reloaded:", registry.reload())
        print(f"now {invoice.policy.timeout}; circuit still {breaker.state}")

        production.write_text(PRODUCTION.replace("timeout", "timeuot"), encoding="utf-8")
        try:
            registry.reload()
        except ConfigError as error:
            (problem,) = error.problems
            print(f"rejected: {problem.text.partition(';')[2].strip()}")
        print(f"now {invoice.policy.timeout}, as before")


if __name__ == "__main__":
    main()
