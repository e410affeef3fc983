"""A redis of a test's own, which it may kill, freeze and start again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from redis_server import RedisServer


@pytest.fixture
def server(redis_program: str, tmp_path: Path) -> Iterator[RedisServer]:
    found = RedisServer(redis_program, str(tmp_path))
    found.start()
    yield found
    found.kill()
