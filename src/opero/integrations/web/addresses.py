"""Where the servers of this user's processes are found: a small file for each, by which `opero top` knows them."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from opero.runtime.log import log


class Address(NamedTuple):
    """A server of a process.

    Attributes:
        pid: the process.
        url: the address of its page.
    """

    pid: int
    url: str


def folder() -> Path:
    """Return the directory of the files: of the user's session, or a temporary one with the user's number."""
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "opero"
    return Path(tempfile.gettempdir()) / f"opero-{os.getuid() if hasattr(os, 'getuid') else 'servers'}"


def publish(url: str) -> Path | None:
    """Write the file of a server of this process; None if that is not possible, which only `opero top` misses."""
    try:
        directory = folder()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_own(directory):
            raise PermissionError(f"{directory} can be written by others")
        path = directory / f"{os.getpid()}-{url.split(':')[2].partition('/')[0] if url.count(':') == 2 else 0}.json"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "url": url}, file)
    except OSError as error:
        log("page_not_found", "opero top will not find this process by its number: %s", error, error=error)
        return None
    return path


def _is_own(path: Path) -> bool:
    """Return whether only this user can write there: another one could lead `opero top` astray."""
    if not hasattr(os, "geteuid"):  # Windows, where it is below the user's own directory
        return True
    found = path.lstat()
    return found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022


def found_addresses() -> list[Address]:
    """Return the servers of processes that are alive, and remove the files of others."""
    directory = folder()
    if not directory.is_dir() or not _is_own(directory):
        return []
    addresses = []
    for path in sorted(directory.glob("*.json")):
        try:
            content = json.loads(path.read_text("utf-8"))
            address = Address(int(content["pid"]), str(content["url"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if _is_alive(address.pid):
            addresses.append(address)
        else:
            with suppress(OSError):
                path.unlink()
    return addresses


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
