"""States that are parked: kept in few bytes while nothing uses them, one for each key of a keyed scope."""

from __future__ import annotations

import marshal
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from opero.executors.state.adaptive_limit import new_limit
from opero.executors.state.adaptive_slots import AdaptiveSlots
from opero.executors.state.circuit import Circuit
from opero.executors.state.circuit_home import LocalCircuit
from opero.executors.state.redis_beat import Updated
from opero.executors.state.slots import LocalSlots
from opero.executors.state.values_home import LocalValues
from opero.executors.state.windows import window_of
from opero.runtime.hosts import run_later

if TYPE_CHECKING:
    from opero.executors.state.home import Home

_FIELDS = tuple(each.name for each in fields(Circuit) if each.name != "window")


def parked(home: Home, now: float) -> Any:
    """Return the state of a home that no call uses, for `resume`; None if that of a new home is as good.

    Args:
        home: where the state is. One that is not only of this process keeps it itself.
        now: the clock's reading.
    """
    if home.stated:
        if isinstance(home, Updated):
            run_later(home.update)  # what has been counted here is sent, before the home is dropped
        return None
    if isinstance(home, LocalSlots):
        return home.values() if isinstance(home, AdaptiveSlots) and _has_learned(home) else None
    if isinstance(home, LocalCircuit):
        circuit = home.circuit
        is_new = circuit.state == "closed" and not circuit.consecutive and not circuit.window.counts(now).calls
        return None if is_new else pack(circuit)
    if isinstance(home, LocalValues):
        memory = home.memory
        return memory if memory.aside or memory.worked or memory.preferred else None
    values = home.values()  # of a budget, or of several
    if isinstance(values, dict):
        is_new = max(account.due for account, _ in values.values()) <= now  # all of their permits are there again
    else:
        due, _, pace, found = values
        is_new = due <= now and pace.ends <= now and found is None
    return None if is_new else values


def _has_learned(slots: AdaptiveSlots) -> bool:
    policy = slots.policy
    return slots.state != new_limit(policy.min_limit, policy.max_limit, policy.first_limit)


def resume(home: Home, state: Any) -> None:
    """Have a new home continue with a state that was parked."""
    home.receive(unpack(state) if isinstance(state, bytes) else state)


def pack(circuit: Circuit) -> bytes:
    """Return a circuit as bytes."""
    calls = circuit.window.plain(0.0)
    return marshal.dumps((calls, [getattr(circuit, name) for name in _FIELDS]))


def unpack(state: bytes) -> Circuit:
    """Return the circuit that `pack` has made bytes of."""
    calls, values = marshal.loads(state)  # they never leave this process
    found = dict(zip(_FIELDS, values, strict=True))
    return Circuit(window=window_of(found["length"], calls, 0.0), **found)
