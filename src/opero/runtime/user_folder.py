"""The directory of this user's files that describe running processes: private, and of no use after a restart."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from opero.runtime.trusted_paths import distrusted


def user_folder() -> Path:
    """Return the directory, which exists and which only this user can read and write.

    It is `opero` in `XDG_RUNTIME_DIR`, if that is set and private; else `opero-UID` in the temporary directory.

    Raises:
        OSError: neither can be used, for example because another user has taken the name.
    """
    problems: list[OSError] = []
    for path in user_folders(problems):
        return path
    raise problems[-1]


def user_folders(problems: list[OSError] | None = None) -> Iterator[Path]:
    """Yield those of the two directories that can be used, and add why the others cannot to `problems`."""
    for path in _candidates():
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check(path)
        except OSError as error:
            if problems is not None:
                problems.append(error)
        else:
            yield path


def _candidates() -> Iterator[Path]:
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(session) and os.path.isdir(session) and _is_private(session):
        yield Path(session) / "opero"
    yield Path(tempfile.gettempdir()) / f"opero-{os.getuid() if hasattr(os, 'getuid') else 'files'}"


def _is_private(path: str) -> bool:
    """Return whether only this user (and root) can change what is in a directory."""
    if not hasattr(os, "geteuid"):  # pragma: no cover  # Windows
        return True
    found = os.stat(path)
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022 and not distrusted(path)


def _check(path: Path) -> None:
    """Check that a directory is this user's own, and make it private."""
    if not hasattr(os, "geteuid"):  # pragma: no cover  # Windows, where it is below the user's own directory
        return
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} can be written by others")
    if found.st_mode & 0o077:
        path.chmod(0o700)
