"""Moving the state of limits to files that a map's worker processes share, and opening it there."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.executors.state.home import migrating
from opero.executors.state.shared_budget import SharedBudget
from opero.executors.state.shared_circuit import ROOM, SharedCircuit
from opero.executors.state.shared_home import FileHome
from opero.executors.state.shared_slots import SharedSlots
from opero.runtime.clock import SYSTEM
from opero.runtime.file_locks import HAS_LOCKS
from opero.runtime.state_file import StateFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from opero.executors.state.home import Holder

__all__ = ["SharedLimits", "share_limits"]

KINDS = ("rate_limit", "circuit_breaker", "bulkhead")
_numbers = itertools.count()


class SharedLimits:
    """Where the limits of a function keep their state, for its worker processes: what `Binding` takes as `share`.

    Attributes:
        paths: kind of policy → file.
        names: kind of policy → the name that its messages have: that of the profile, where its functions share it.
    """

    def __init__(self, paths: Mapping[str, str], names: Mapping[str, str]) -> None:
        self.paths = dict(paths)
        self.names = dict(names)

    def __call__(self, kind: str, policy: Any, make: Callable[..., Any]) -> Any:
        """A worker's executor, which shares its state with the parent's.

        Raises:
            ConfigError: the file does not exist on this machine.
        """
        if kind not in self.paths:
            return make()
        executor = make(self.names[kind])
        executor.join(_home(kind, executor, StateFile(self.paths[kind])))
        return executor


def share_limits(executors: Mapping[str, Any], name: str, folder: Path) -> SharedLimits | None:
    """Have the limits among these executors share their state with worker processes.

    Args:
        executors: kind of policy → its executor.
        name: the function's, for messages.
        folder: where to create the files.

    Returns:
        None where there are no limits.

    Raises:
        ConfigError: one is on a clock of its own, or this platform has no locks between processes.
    """
    paths, names = {}, {}
    for kind in KINDS:
        executor = executors.get(kind)
        if executor is None:
            continue
        if kind == "rate_limit":
            executor = executor.limiter
        if executor.clock is not SYSTEM:
            raise ConfigError(
                f"{name}: its {kind} runs on a clock of its own, which worker processes do not have; use mode='thread'"
            )
        if not HAS_LOCKS:  # pragma: no cover  # Windows
            raise ConfigError(f"{name}: {kind} cannot be shared between processes on this platform; use mode='thread'")
        with migrating:
            if not executor.home.successor.is_shared:
                file = StateFile.create(folder / f"{kind}-{next(_numbers)}", _size(kind, executor))
                executor.move_to(_home(kind, executor, file))
        home = executor.home.successor
        if isinstance(home, FileHome):  # else it is one that a worker's executor uses by its policy
            paths[kind], names[kind] = home.file.path, executor.name
    return SharedLimits(paths, names) if paths else None


def _home(kind: str, executor: Holder[Any], file: StateFile) -> FileHome:
    """The home of a limit's state in a file."""
    if kind == "rate_limit":
        return SharedBudget(file, executor.own)
    return SharedCircuit(file) if kind == "circuit_breaker" else SharedSlots(file)


def _size(kind: str, executor: Holder[Any]) -> int:
    """Bytes for a limit's state: a circuit breaker's window of calls takes one each."""
    if kind == "circuit_breaker":
        return ROOM + (executor.policy.window if isinstance(executor.policy.window, int) else 0)
    return 1 << 16 if kind == "bulkhead" else 8192
