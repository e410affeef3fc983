"""Where the servers of this user's processes are found: a small file for each, by which `opero top` knows them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from opero.runtime.log import log
from opero.runtime.user_folder import user_folder

if TYPE_CHECKING:
    from pathlib import Path


class Address(NamedTuple):
    """A server of a process.

    Attributes:
        pid: the process.
        url: the address of its page.
    """

    pid: int
    url: str


def publish(url: str) -> Path | None:
    """Write the file of a server of this process; None if that is not possible, which only `opero top` misses."""
    try:
        path = user_folder() / f"{os.getpid()}-{url.split(':')[2].partition('/')[0] if url.count(':') == 2 else 0}.json"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "url": url}, file)
    except OSError as error:
        log("page_not_found", "opero top will not find this process by its number: %s", error, error=error)
        return None
    return path


def found_addresses() -> list[Address]:
    """Return the servers of processes that are alive, and remove the files of others."""
    try:
        directory = user_folder()
    except OSError:
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
