"""Who may write what is read, and so choose what the program imports and calls."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from opero.config.location import show_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["writable_warnings"]


def writable_warnings(read: Iterable[Path]) -> list[str]:
    """A warning for each of these files and directories that anybody may write to; and for each directory on the way to
    them, links included, in which anybody may put something else in their place."""
    paths = list(read)
    found: dict[tuple[int, int], str] = {}
    for path in [*paths, *(above for one in paths for above in _way_to(one))]:
        try:
            status = path.stat()
        except OSError:  # a link that leads nowhere, or what may not be looked at
            continue
        # With a sticky bit, as /tmp has it, nobody can rename or remove what is another's, but anybody can add files.
        keeps_others = status.st_mode & stat.S_ISVTX and path not in paths
        if status.st_mode & stat.S_IWOTH and not keeps_others:
            shown = show_path(path)
            found.setdefault(
                (status.st_dev, status.st_ino),
                f"{shown}: is writable by all users of this machine, who can choose what this program imports and "
                f"calls; run: chmod o-w {shown}",
            )
    return list(found.values())


def _way_to(path: Path) -> Iterator[Path]:
    """Every directory above a path, and above whatever the links on the way lead to."""
    seen: set[Path] = set()
    left = [Path(os.path.abspath(path))]
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.is_symlink():
            left.append(Path(os.path.abspath(path.parent.resolve() / path.readlink())))
        if path.parent != path:
            yield path.parent
            left.append(path.parent)
