"""Which limits share their state with a map's worker processes, and where."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.executors.rate_limit import Meter
from opero.executors.state.shared_budget import share_rate_limit
from opero.executors.state.shared_circuit import ROOM, share_circuit_breaker
from opero.executors.state.shared_slots import SharedPlaces, share_bulkhead
from opero.runtime.clock import SYSTEM
from opero.runtime.migration import moving
from opero.runtime.state_file import HAS_LOCKS, StateFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["SharedLimits", "share_limits"]

KINDS = ("rate_limit", "circuit_breaker", "bulkhead")
_SHARE: dict[str, Callable[..., None]] = {
    "rate_limit": share_rate_limit,
    "circuit_breaker": share_circuit_breaker,
    "bulkhead": share_bulkhead,
}
_numbers = itertools.count()


def _begin_child() -> None:
    StateFile.reopen_all()
    SharedPlaces.renew_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


class SharedLimits:
    """Where the limits of a function keep their state, for its worker processes: what `Binding` takes as `share`.

    Attributes:
        paths: kind of policy → file.
        names: kind of policy → the name that its messages have: the profile's, where it is one's.
    """

    def __init__(self, paths: Mapping[str, str], names: Mapping[str, str]) -> None:
        self.paths = dict(paths)
        self.names = dict(names)

    def __call__(self, kind: str, policy: Any, make: Callable[..., Any]) -> Any:
        """A worker's executor, which shares its state with the parent's.

        Raises:
            ConfigError: the state is not to be found on this machine.
        """
        if kind not in self.paths:
            return make()
        executor = make(self.names[kind])
        _SHARE[kind](executor, StateFile(self.paths[kind]), first=False)
        return executor


def share_limits(executors: Mapping[str, Any], name: str, folder: Path) -> SharedLimits | None:
    """Have the limits among these executors share their state with worker processes.

    Args:
        executors: kind of policy → its executor.
        name: the function's, for messages.
        folder: where to put the files.

    Returns:
        None where there are no limits.

    Raises:
        ConfigError: one is on a clock of its own, or this platform has no locks that processes share.
    """
    paths, names = {}, {}
    for kind in KINDS:
        executor = executors.get(kind)
        if executor is None:
            continue
        if isinstance(executor, Meter):
            executor = executor.limiter
        if executor.clock is not SYSTEM:
            raise ConfigError(
                f"{name}: its {kind} runs on a clock of its own, which worker processes do not have; use mode='thread'"
            )
        if not HAS_LOCKS:  # pragma: no cover  # Windows
            raise ConfigError(f"{name}: {kind} cannot be shared between processes on this platform; use mode='thread'")
        with moving:
            file = _file_of(kind, executor)
            if file is None:
                file = StateFile.create(folder / f"{kind}-{next(_numbers)}", _size(kind, executor))
                _SHARE[kind](executor, file, first=True)
        paths[kind], names[kind] = file.path, executor.name
    return SharedLimits(paths, names) if paths else None


def _file_of(kind: str, executor: Any) -> StateFile | None:
    """Where an executor keeps its state, if it shares it already."""
    if kind == "rate_limit":
        return getattr(executor.ledger.head, "_file", None)
    return getattr(executor.circuit if kind == "circuit_breaker" else executor.places.now(), "file", None)


def _size(kind: str, executor: Any) -> int:
    """Bytes that its state may take: a circuit breaker's window of calls takes one each."""
    if kind == "circuit_breaker" and isinstance(executor.circuit.length, int):
        return ROOM + int(executor.circuit.length)
    return 1 << 16 if kind == "bulkhead" else 8192
