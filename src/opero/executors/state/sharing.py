"""Moving the state of limits to files that a map's worker processes share, and opening it there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError
from opero.executors.state.allowance import SharedAllowance
from opero.executors.state.home import migrating
from opero.executors.state.local_budgets import LocalBudgets
from opero.executors.state.shared_budget import SharedBudget
from opero.executors.state.shared_budgets import SharedBudgets
from opero.executors.state.shared_circuit import ROOM, SharedCircuit
from opero.executors.state.shared_home import FileHome
from opero.executors.state.shared_slots import SharedSlots
from opero.executors.state.shared_values import SharedValues
from opero.runtime.clock import SYSTEM
from opero.runtime.file_locks import HAS_LOCKS
from opero.runtime.private_folder import in_private_folder
from opero.runtime.state_file import StateFile

if TYPE_CHECKING:
    from pathlib import Path

    from opero.executors.state.home import Holder
    from opero.runtime.clock import Clock
    from opero.runtime.state_file import Held

KINDS = {
    "rate_limit": "rate_limit",
    "circuit_breaker": "circuit_breaker",
    "bulkhead": "bulkhead",
    "fallback": "values",
    "retry": "retry_budget",
}
"""Kind of policy → the name of its executor in a pipeline."""
OPTIONAL = ("fallback", "retry")
"""Kinds that each worker has for itself where they cannot be shared: it learns by itself which values work, and its own
calls pay for its retries."""
_numbers = itertools.count()


class SharedLimits:
    """Where the limits of a function keep their state, for its worker processes: what `Binding` takes as `share`.

    Attributes:
        paths: kind of policy → file.
        names: kind of policy → the name that its messages have: that of the profile, where its functions share it.
        held: kind of policy → where this process has the file open.
    """

    def __init__(
        self, paths: Mapping[str, str], names: Mapping[str, str], held: Mapping[str, Held] | None = None
    ) -> None:
        self.paths = dict(paths)
        self.names = dict(names)
        self.held = dict(held or {})

    def __call__(self, policy: Any, clock: Clock, make: Callable[..., Any]) -> Any:
        """A worker's executor, which shares its state with the parent's.

        Raises:
            ConfigError: the file does not exist on this machine.
        """
        kind = policy.kind
        if kind not in self.paths:
            return make(self.names.get(kind))
        executor = make(self.names[kind])
        try:
            file = StateFile(self.paths[kind], self.held.get(kind))
        except ConfigError:
            if kind in OPTIONAL:  # the worker of an executor on another machine
                return executor
            raise
        executor.join(file_home(kind, executor, file))
        return executor


def share_limits(executors: Mapping[str, Any], name: str, folder: Path | None = None) -> SharedLimits | None:
    """Have the limits among these executors share their state with worker processes.

    Args:
        executors: kind of policy → its executor.
        name: the function's, for messages.
        folder: where to create the files. Default: the directory of this process.

    Returns:
        None where there are no limits.

    Raises:
        ConfigError: one is on a clock of its own, or this platform has no locks between processes.
    """
    paths, names, held = {}, {}, {}
    for kind, executor_name in KINDS.items():
        executor = executors.get(executor_name)
        executor = getattr(executor, "limiter", executor)
        is_by_key = getattr(executor, "by", None) is not None  # such as a memory of values: each worker has its own
        if executor is None or is_by_key or (kind in OPTIONAL and not (executor.clock is SYSTEM and HAS_LOCKS)):
            continue
        if executor.clock is not SYSTEM:
            raise ConfigError(
                f"{name}: its {kind} runs on a clock of its own, which worker processes do not have; use mode='thread'"
            )
        if not HAS_LOCKS:  # pragma: no cover  # Windows
            raise ConfigError(f"{name}: {kind} cannot be shared between processes on this platform; use mode='thread'")
        if executor.home.successor.stated:  # a worker's executor uses it by its policy
            names[kind] = executor.name
            continue
        with migrating:
            home = executor.home.successor
            if not home.is_shared or (isinstance(home, FileHome) and not home.file.can_be_found()):
                create = partial(_create, f"{kind}-{next(_numbers)}", size_of(kind, executor))
                file = in_private_folder(create) if folder is None else create(folder)
                executor.move_to(file_home(kind, executor, file))
        home = executor.home.successor
        if isinstance(home, FileHome):
            paths[kind], names[kind], held[kind] = home.file.path, executor.name, home.file.held
    return SharedLimits(paths, names, held) if names else None


def stated_in(executors: Mapping[str, Any], policies: Mapping[str, Any]) -> dict[str, Any]:
    """Return policies for workers, which need not find out under which name, and where, a state is shared.

    Args:
        executors: kind of policy → its executor.
        policies: kind of policy → the policy, or None.
    """
    found = dict(policies)
    for kind, policy in policies.items():
        executor = executors.get(KINDS.get(kind, ""))
        home = getattr(getattr(executor, "limiter", executor), "home", None)
        if policy is not None and home is not None and home.successor.stated:
            found[kind] = policy.replace(**home.successor.stated)
    return found


def _create(name: str, size: int, folder: Path) -> StateFile:
    return StateFile.create(folder / name, size)


def file_home(kind: str, executor: Holder[Any], file: StateFile) -> FileHome:
    """The home of a limit's state in a file."""
    if kind == "rate_limit":
        return (SharedBudgets if isinstance(executor.own, LocalBudgets) else SharedBudget)(file, executor.own)
    if kind == "fallback":
        return SharedValues(file)
    if kind == "retry":
        return SharedAllowance(file)
    return SharedCircuit(file) if kind == "circuit_breaker" else SharedSlots(file)


def size_of(kind: str, executor: Holder[Any]) -> int:
    """Bytes for a limit's state: a circuit breaker's window of calls takes one each."""
    if kind == "circuit_breaker":
        return ROOM + (executor.policy.window if isinstance(executor.policy.window, int) else 0)
    if isinstance(getattr(executor, "own", None), LocalBudgets):
        return 8192 * (1 + len(executor.own.names))
    return 8192 if kind in ("rate_limit", "retry") else 1 << 16
