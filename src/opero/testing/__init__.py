"""A test kit: virtual time, scripted faults, counted attempts, fresh state; as fixtures in `opero.pytest_plugin`."""

from __future__ import annotations

from opero.testing.attempts import assert_attempts
from opero.testing.clock import VirtualClock
from opero.testing.faults import Faults, Response, faults, ok, slow, status
from opero.testing.recording import Recording, record
from opero.testing.replaying import Replay, ReplayError, replay
from opero.testing.state import NoWaits, disabled, fresh_state, no_waits, virtual_clock

__all__ = [
    "Faults",
    "NoWaits",
    "Recording",
    "Replay",
    "ReplayError",
    "Response",
    "VirtualClock",
    "assert_attempts",
    "disabled",
    "faults",
    "fresh_state",
    "no_waits",
    "ok",
    "record",
    "replay",
    "slow",
    "status",
    "virtual_clock",
]
