"""What all homes in a locked file have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from opero.executors.state.home import Home

if TYPE_CHECKING:
    from opero.runtime.state_file import StateFile

__all__ = ["FileHome"]


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
