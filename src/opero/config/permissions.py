"""Warnings about configuration that others can write: they choose what the program imports and calls."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from opero.config.location import show_path


def writable_warnings(read: Iterable[Path]) -> list[str]:
    """Return a warning for each world-writable file or directory among these, and for each world-writable directory
    above them, links included, where they could be replaced; and one for each other user to whom any of them belongs.
    """
    paths = list(read)
    found: dict[tuple[int, int], str] = {}
    for path in [*paths, *(above for one in paths for above in _way_to(one))]:
        try:
            status = path.stat()
        except OSError:  # a dangling link, or no permission
            continue
        if sys.platform != "win32" and status.st_uid not in (os.geteuid(), 0):
            found.setdefault(
                (-1, status.st_uid),
                f"{show_path(path)}: belongs to another user of this machine (uid {status.st_uid}), who can choose "
                "what this program imports and calls",
            )
        # In a sticky directory, such as /tmp, others can add files but not replace these.
        is_sticky = status.st_mode & stat.S_ISVTX and path not in paths
        if status.st_mode & stat.S_IWOTH and not is_sticky:
            shown = show_path(path)
            found.setdefault(
                (status.st_dev, status.st_ino),
                f"{shown}: is writable by all users of this machine, who can choose what this program imports and "
                f"calls; run: chmod o-w {shown}",
            )
    return list(found.values())


def _way_to(path: Path) -> Iterator[Path]:
    """Yield every directory above a path, and above the targets of links on the way."""
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
