"""One program, three environments: the numbers are in YAML files, and the code names a profile only.

    python examples/environments.py

The files are written to a temporary directory here, so that the program stands alone; in a project they are policies/.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from textwrap import dedent

from opero import Registry

FILES = {
    "base.yaml": """\
        policies:
          geocoder:
            retry: {retries: 2, retry_on: [ConnectionError, TimeoutError]}
            timeout: 5s
          imports:
            extends: geocoder
            timeout: 1m
    """,
    "development.yaml": """\
        policies:
          geocoder: {rate_limit: 2/s}
    """,
    "staging.yaml": """\
        policies:
          geocoder: {rate_limit: 10/s, cache: 1m}
    """,
    "production.yaml": """\
        policies:
          geocoder:
            retry: {retries: 6}
            rate_limit: 80/s
            cache: {ttl: 2h, stale_ttl: 1d}
          imports: {cache: null}
    """,
}


def locate(address: str) -> tuple[float, float]:
    """What the profile is for. The same function is bound in every environment."""
    return float(len(address)), 52.5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            Path(folder, name).write_text(dedent(text), encoding="utf-8")

        for environment in ("development", "staging", "production"):
            registry = Registry.load(folder, environment, environ={})
            bound = registry.bind(locate, "geocoder")
            assert bound("Unter den Linden 1")[1] == 52.5
            policy = bound.policy
            assert policy.retry is not None
            assert policy.rate_limit is not None
            ttl = policy.cache.ttl if policy.cache is not None else None
            print(f"{environment:12} retries={policy.retry.retries} rate={policy.rate_limit.rate:g} cache={ttl}")

        # An operator overrides one value for one deployment, and can see what holds and why.
        registry = Registry.load(folder, "production", environ={"OPERO_GEOCODER_RETRIES": "8"})
        leaf = registry.explain("imports")["retry.retries"]
        chain = [f"{each.value} ({Path(each.source.name).name})" for each in leaf.chain()]
        print("imports retries:", ", then ".join(chain))


if __name__ == "__main__":
    main()
