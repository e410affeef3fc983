"""Observing a service: opero's log records as JSON lines, events, and counts for a metrics system.

python examples/logs_and_counts.py
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

from opero import configure_logging, on, opero
from opero.events import CacheFailed

failures = iter([ConnectionError("reset by peer"), ConnectionError("reset by peer")])


class JsonLines(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"level": record.levelname, "logger": record.name, "message": record.getMessage()})


@opero(retries=3, min_delay="1ms", rate_limit="500/s")
def send(message: str) -> str:
    for error in failures:
        raise error
    return f"sent {message}"


def export(name: str, counts: dict[str, object]) -> None:
    """What a metrics system would be given, once in a while."""
    for count in ("calls", "attempts", "retries", "recoveries"):
        print(f"opero_{count}_total{{function={name!r}}} {counts[count]}")


def main() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    configure_logging(logging.DEBUG).addHandler(handler)

    print(send("hello"))
    export("send", send.stats.as_dict())

    def alert(event: CacheFailed) -> None:
        print(f"alert: {event.what}, {type(event.error).__name__}")

    off = on(CacheFailed, alert)
    with tempfile.TemporaryDirectory() as folder:

        @opero(retries=0, cache_backend="disk", cache_ttl="1h", cache_dir=Path(folder), cache_serializer="json")
        def labels() -> set[str]:
            return {"urgent"}  # JSON has no sets: the caller gets the result, and the cache does not

        print(f"labels: {labels()}")
    off()


if __name__ == "__main__":
    main()
