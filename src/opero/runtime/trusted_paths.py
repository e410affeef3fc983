"""Whether other users could have written a file: what is unpickled from there would run their code."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator

MOST_LINKS = 40


def distrusted(path: str | os.PathLike[str], *, holds_files: bool = False) -> str:
    """Return why others may have written what is at a path, such as "/srv belongs to another user (uid 7)"; or "".

    The path and everything above it, also behind symbolic links, has to belong to this user or to root, and must not be
    writable by all; members of a group are trusted. A sticky directory such as /tmp may be above: others cannot replace
    what is ours in it. What does not exist yet is not looked at, and nothing is on Windows, where a file's mode says
    nothing.

    Args:
        path: a file or directory.
        holds_files: it is a directory in which files will be made, so it must not be a sticky one either.
    """
    if sys.platform == "win32":  # pragma: no cover
        return ""
    last = ("", False)
    for each, status in _steps(os.path.abspath(path)):
        if status.st_uid not in (os.geteuid(), 0):
            return f"{each} belongs to another user (uid {status.st_uid})"
        if stat.S_ISLNK(status.st_mode):  # its mode says nothing
            continue
        is_open = bool(status.st_mode & stat.S_IWOTH)
        last = (each, is_open)
        is_sticky = stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISVTX)
        if is_open and not is_sticky:
            return f"{each} is writable by all users"
    return f"{last[0]} is writable by all users" if holds_files and last[1] else ""


def _steps(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """What the operating system passes on its way to a path, from the root: directories, links, and what these name."""
    at, links = os.path.dirname(path), 0
    while os.path.dirname(at) != at:
        at = os.path.dirname(at)
    yield at, os.lstat(at)
    names = _names(path)
    while names:
        name = names.pop()
        if name == os.pardir:
            at = os.path.dirname(at)
            continue
        here = os.path.join(at, name)
        try:
            status = os.lstat(here)
        except OSError:  # it does not exist, or cannot be reached
            return
        yield here, status
        if not stat.S_ISLNK(status.st_mode):
            at = here
            continue
        links += 1
        if links > MOST_LINKS:
            return
        target = os.readlink(here)
        names += _names(target)
        if os.path.isabs(target):
            while os.path.dirname(at) != at:
                at = os.path.dirname(at)


def _names(path: str) -> list[str]:
    """The names in a path, the last one first."""
    return [each for each in os.path.splitdrive(path)[1].split(os.sep)[::-1] if each not in ("", os.curdir)]
