"""What all homes in a locked file have in common."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from opero.executors.state.home import Home
from opero.runtime.forking import at_fork
from opero.runtime.machine import started

if TYPE_CHECKING:
    from opero.executors.state.home import Owner
    from opero.runtime.state_file import StateFile


class FileHome(Home):
    """Keeps a state in a file that the processes of a machine share. Every operation locks the file.

    Args:
        file: the file. One that has just been created holds no state yet: one is moved there.
    """

    is_shared: ClassVar[bool] = True
    lock: StateFile

    def __init__(self, file: StateFile) -> None:
        super().__init__()
        self.file = self.lock = file

    def merge_into(self, target: Home) -> None:
        if isinstance(target, FileHome) and self.file.is_same_as(target.file):
            with self.lock:  # the state is there already, in use by executors of another class
                self.refer_to(target)
        else:
            super().merge_into(target)


_own: dict[int, Owner] = {}


def this_process() -> Owner:
    """Return this process as the owner of a part of a shared state."""
    pid = os.getpid()
    if pid not in _own:
        _own[pid] = pid, started(pid)
    return _own[pid]


def has_ended(owner: Owner) -> bool:
    """Return whether a process has ended."""
    return started(owner[0]) != owner[1]


at_fork(in_child=_own.clear)  # its number may have been that of a process before
