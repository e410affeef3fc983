"""Files in which all processes of this machine and user keep the state of a limit: `share: machine`."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from opero.errors import ConfigError, message_of
from opero.executors.state.local_budgets import LocalBudgets
from opero.executors.state.sharing import file_home, size_of
from opero.runtime.file_locks import HAS_LOCKS
from opero.runtime.forking import RenewedLock
from opero.runtime.machine import boot
from opero.runtime.state_file import StateFile
from opero.runtime.user_folder import user_folder

if TYPE_CHECKING:
    from pathlib import Path

    from opero.executors.state.home import Holder
    from opero.executors.state.shared_home import FileHome

FOLDER = "limits"
_homes: weakref.WeakValueDictionary[str, FileHome] = weakref.WeakValueDictionary()
"""The homes that this process has, by file and kind of state: all executors with the same state use one."""
_lock = RenewedLock()


def join_machine(executor: Holder[Any], shared_as: str, name: str) -> None:
    """Have an executor keep its state in the file of that name, which the first process creates.

    Nothing of a file is of use after a restart of the machine, as the clock begins anew, or to another version of
    opero: their names differ, and those of earlier runs are deleted.

    Args:
        executor: the executor, whose state is in this process.
        shared_as: the name under which the state is shared.
        name: what messages begin with, before the name of an option.

    Raises:
        ConfigError: this machine has no directory for it that only this user can write to, or no locks.
    """
    kind = executor.policy.kind
    if not HAS_LOCKS:  # pragma: no cover  # Windows
        raise ConfigError(f"{name}.share 'machine' needs locks between processes, which this platform does not have")
    try:
        folder = user_folder() / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        run, text, of = _digest(boot()), _digest(shared_as), _digest(version("opero"))
        has_several = isinstance(executor.own, LocalBudgets) and not executor.own.is_single
        path = folder / f"{text}.{kind}{'s' if has_several else ''}.{run}.{of}"
        _clear(folder, run)
        with _lock:
            which = f"{path} {type(executor.own).__name__}"
            home = _homes.get(which)
            is_new = home is None
            if home is None:
                if not path.exists():
                    _create(path, executor, kind)
                home = _homes[which] = file_home(kind, executor, StateFile(str(path)))
                home.stated = {"share_as": shared_as}
    except OSError as error:
        raise ConfigError(f"{name}.share 'machine' cannot keep its state in a file: {message_of(error)}") from error
    executor.join(home)
    if is_new:
        home.apply(executor.policy)  # which is newer than what other processes have


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def _create(path: Path, executor: Holder[Any], kind: str) -> None:
    """Create the file, complete with the state, unless another process does so first."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        own.unlink()
    file = StateFile.create(own, size_of(kind, executor))
    executor.move_to(file_home(kind, executor, file))
    try:
        with suppress(FileExistsError):
            os.link(own, path)
    finally:
        executor.move_to(executor.own)
        own.unlink(missing_ok=True)


def _clear(folder: Path, run: str) -> None:
    """Delete the files of earlier runs of the machine."""
    for each in folder.iterdir():
        if run not in each.name.split("."):
            each.unlink(missing_ok=True)
