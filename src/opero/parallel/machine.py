"""What this process may use of the machine: processors and memory, by what its cgroups allow, too."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cpu_limit", "forget_peak", "memory_limit", "memory_used", "peak", "resident", "started", "workers_that_fit"]

UNLIMITED = 1 << 62
"""cgroups of version 1 write a number beyond this where there is no limit."""
LEAST_WORKER = 64 << 20
"""Bytes that a worker process takes at least: the interpreter with what a worker imports."""


def cpu_limit() -> int:
    """Processors that this process may use, at least 1: by its affinity, and by its cgroup's quota, rounded up."""
    from joblib import cpu_count

    return max(1, int(cpu_count()))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process and its children may use: the least that a cgroup above it or the machine allows.

    Args:
        root: where /proc and /sys are.
    """
    limits = [limit for folder in _cgroups(root) if (limit := _limit_of(folder)) is not None]
    total = _total(root)
    return min([*limits, *([total] if total is not None else [])], default=None)


def memory_used(root: Path = Path("/")) -> int | None:
    """Bytes in use of what `memory_limit` allows; None where that cannot be known."""
    folders = [(limit, folder) for folder in _cgroups(root) if (limit := _limit_of(folder)) is not None]
    total = _total(root)
    if folders and (total is None or min(folders)[0] <= total):
        _, folder = min(folders)
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if used is not None:
            return used
    available = _meminfo(root, "MemAvailable")
    return None if total is None or available is None else total - available


def resident(pid: int, root: Path = Path("/")) -> int:
    """Bytes of memory that a process holds; 0 where there is none of that number."""
    try:
        pages = int((root / f"proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return _resident_elsewhere(pid) if not (root / "proc/self").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _resident_elsewhere(pid: int) -> int:
    """The same, where there is no /proc."""
    try:
        import psutil
    except ImportError:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def peak(pid: int, root: Path = Path("/")) -> int:
    """The most that a process has held since that was last forgotten; what it holds where the system does not say."""
    try:
        text = (root / f"proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return resident(pid, root)


def forget_peak(pid: int, root: Path = Path("/")) -> None:
    """From now on `peak` tells of what the process will hold, where the system can forget."""
    with suppress(OSError):
        (root / f"proc/{pid}/clear_refs").write_text("5", encoding="utf-8")


def started(pid: int, root: Path = Path("/")) -> float:
    """What tells a process from others that have had its number; -1 where there is none."""
    try:
        text = (root / f"proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return float(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        if (root / "proc/self").exists():
            return -1.0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1.0
    except OSError:  # it is another user's
        pass
    return 0.0


def workers_that_fit(wanted: int) -> int:
    """How many of so many worker processes there is memory for, if each takes what this one does."""
    limit, used = memory_limit(), memory_used()
    if limit is None or used is None:
        return wanted
    each = max(LEAST_WORKER, min(resident(os.getpid()), limit // 4))
    return max(1, min(wanted, (limit - used) // each))


# cgroups


def _cgroups(root: Path) -> Iterator[Path]:
    """The folders of this process's memory cgroup and of those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        # In a container the path is often that of the host, and its own cgroup is at the mount itself.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            if folder.is_dir():
                yield folder


def _limit_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is not None and 0 < limit < UNLIMITED:
            return limit
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max" where there is no limit
        return None


def _total(root: Path) -> int | None:
    return _meminfo(root, "MemTotal")


def _meminfo(root: Path, name: str) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{name}:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
