"""The pytest plugin, which pytest loads by itself: fixtures of `opero.testing`, and fresh state for every test.

It imports nothing of opero until a test uses a fixture, or the program under test has bound a function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from opero.testing import NoWaits, VirtualClock

OPTION = "opero_fresh_state"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(OPTION, "reset opero's breakers, limiters, caches and counts before each test", "bool", True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    rosters = sys.modules.get("opero.binding.roster")
    if rosters is not None and item.config.getini(OPTION) and rosters.all_bindings():
        from opero.testing import fresh_state

        fresh_state()


@pytest.fixture
def virtual_clock() -> Iterator[VirtualClock]:
    """All bound functions and event loops run in virtual time: `opero.testing.virtual_clock`."""
    from opero.testing import virtual_clock

    with virtual_clock() as clock:
        yield clock


@pytest.fixture
def no_waits() -> Iterator[NoWaits]:
    """All bound functions skip their waits, which are recorded: `opero.testing.no_waits`."""
    from opero.testing import no_waits

    with no_waits() as waits:
        yield waits


@pytest.fixture
def fresh_state() -> Callable[[], None]:
    """The state of all bound functions begins anew with the test, and whenever this is called."""
    from opero.testing import fresh_state

    fresh_state()
    return fresh_state
