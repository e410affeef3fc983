"""The directories of a project: where its configuration is looked for, from the working directory upwards."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

ROOTS = (".git", ".hg")
"""What the root of a project has: the repository, or else `PROJECT`."""
PROJECT = "pyproject.toml"


def folders(start: Path) -> list[Path]:
    """Return the directories to look in for configuration: the given one, then those above it, to the project's root.

    The root is the nearest directory with a repository (`.git`, `.hg`), or without one the nearest with a
    pyproject.toml. Without either, nothing above the given directory is looked at. Nor is the home directory, and what
    is above it or above a directory that another user could have written.

    Args:
        start: the directory to begin with. It need not exist.
    """
    try:
        first = os.path.abspath(start)
    except FileNotFoundError:  # the working directory has been removed
        return [start]
    found, until = [start], 0
    for at in _upwards(first):
        if at != first:
            found.append(Path(at))
        names = _names(at)
        if not names.isdisjoint(ROOTS):
            return found
        if PROJECT in names and not until:
            until = len(found)
    return found[: until or 1]


def _names(folder: str) -> set[str]:
    return {each for each in (*ROOTS, PROJECT) if os.path.lexists(os.path.join(folder, each))}


def _upwards(first: str) -> Iterator[str]:
    yield first
    home = os.path.expanduser("~")
    at = os.path.dirname(first)
    while at != os.path.dirname(at) and at != home and _is_ours(at):
        yield at
        at = os.path.dirname(at)


def _is_ours(folder: str) -> bool:
    """Return whether no other user but root could have written what is in a directory."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    if sys.platform == "win32":  # pragma: no cover  # a mode says nothing there
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & stat.S_IWOTH
