"""What all homes in a locked file have in common."""

from __future__ import annotations

import functools
import os
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from opero.executors.state.home import Home
from opero.runtime.forking import at_fork
from opero.runtime.machine import started

if TYPE_CHECKING:
    from collections.abc import Callable

    from opero.executors.state.home import Owner
    from opero.runtime.state_file import StateFile

WITHIN = ("values", "receive", "add", "vacate")
"""Methods that are called with the lock held."""
F = TypeVar("F", bound="Callable[..., Any]")


def releasing(method: F) -> F:
    """Make an operation of a home in a file release the lock of the file where Ctrl-C has kept it from that.

    A function written in Python, such as an `__exit__`, may be interrupted before its first line.
    """

    @functools.wraps(method)
    def operation(self: FileHome, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            self.file.release()
            raise

    return operation  # type: ignore[return-value]


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

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, each in list(vars(cls).items()):
            if isinstance(each, FunctionType) and not name.startswith("_") and name not in WITHIN:
                setattr(cls, name, releasing(each))

    def release(self) -> None:
        self.file.release()

    @releasing
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
