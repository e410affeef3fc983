"""What this process may use of the machine: processors and memory, by what its cgroups allow, too."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "cpu_limit",
    "descendants",
    "forget_peak",
    "memory_left",
    "memory_limit",
    "peak",
    "queued",
    "resident",
    "started",
    "workers_that_fit",
]

UNLIMITED = 1 << 62
"""cgroups of version 1 write a number beyond this where there is no limit."""
LEAST_WORKER = 64 << 20
"""Bytes that a worker process takes at least: the interpreter with what a worker imports."""


def cpu_limit(root: Path = Path("/")) -> int:
    """Processors that this process may use, at least 1: by its affinity, and by the quotas of its cgroups, rounded up.

    Args:
        root: where /proc and /sys are.
    """
    from joblib import cpu_count

    # joblib looks at the quota where cgroups are mounted, and not at those of groups below, where services are.
    quotas = [quota for folder in _cgroups(root, "cpu") if (quota := _quota_of(folder)) is not None]
    return max(1, min([int(cpu_count()), *quotas]))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process and its children may use: the least that a cgroup above it or the machine allows."""
    limits = [limit for folder in _cgroups(root, "memory") if (limit := _limit_of(folder)) is not None]
    total = _field(root / "proc/meminfo", "MemTotal:")
    return min([*limits, *([total * 1024] if total is not None else [])], default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that are still free, of what the machine and each cgroup above this process allow; None: not known."""
    left = [limit - _used_of(folder) for folder in _cgroups(root, "memory") if (limit := _limit_of(folder)) is not None]
    available = _field(root / "proc/meminfo", "MemAvailable:")
    return min([*left, *([available * 1024] if available is not None else [])], default=None)


def descendants(pid: int) -> list[int]:
    """The processes that a process has begun, and that these have, as far as the machine tells."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(each) for each in path.read_text(encoding="utf-8").split()]
        except (OSError, ValueError):
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


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
    most = _field(root / f"proc/{pid}/status", "VmHWM:")
    return resident(pid, root) if most is None else most * 1024


def forget_peak(pid: int, root: Path = Path("/")) -> None:
    """From now on `peak` tells of what the process will hold, where the system can forget."""
    with suppress(OSError):
        (root / f"proc/{pid}/clear_refs").write_text("5", encoding="utf-8")


def started(pid: int, root: Path = Path("/")) -> float:
    """What tells a process from others that have had its number; -1 where there is none."""
    try:
        text = (root / f"proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return -1.0 if fields[0] in "ZX" else float(fields[19])  # one that is dead and not waited for yet is none
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


def queued() -> float:
    """Seconds that this thread has waited for its turn on a processor so far; 0 where the system does not say."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def workers_that_fit(wanted: int, root: Path = Path("/")) -> int:
    """How many of so many worker processes there is memory for, if each takes what this one does."""
    limit, left = memory_limit(root), memory_left(root)
    if limit is None or left is None:
        return wanted
    each = max(LEAST_WORKER, min(resident(os.getpid(), root), limit // 4))
    return max(1, min(wanted, left // each))


# cgroups


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mounted = root / "sys/fs/cgroup"
        if number == "0" and not controllers:
            mounts = [mounted, mounted / "unified"]
        elif controller in controllers.split(","):
            mounts = [mounted / controllers, mounted / controller]
        else:
            continue
        # In a container the path is often that of the host, and its own cgroup is at the mount itself.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):
                folder = mount.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


def _quota_of(folder: Path) -> int | None:
    """Processors that a cgroup allows."""
    try:
        quota, period = map(int, (folder / "cpu.max").read_text(encoding="utf-8").split())
    except (OSError, ValueError):  # "max" where there is none
        quota, period = (_number(folder / f"cpu.cfs_{name}_us") or 0 for name in ("quota", "period"))
    return max(1, -(-quota // period)) if quota > 0 and period > 0 else None


def _limit_of(folder: Path) -> int | None:
    """Bytes that a cgroup allows."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is not None and 0 < limit < UNLIMITED:
            return limit
    return None


def _used_of(folder: Path) -> int:
    """Bytes that are in use in a cgroup, without files that the system only keeps until it needs the memory."""
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    names = ("total_inactive_file", "inactive_file")  # in version 1 the second is without the groups below
    kept = next((each for name in names if (each := _field(folder / "memory.stat", name)) is not None), 0)
    return max(0, used - kept)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max" where there is no limit
        return None


def _field(path: Path, name: str) -> int | None:
    """The number behind a name, in a file that has such a pair in each line."""
    try:
        lines = (line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
        return next(int(line[1]) for line in lines if line[:1] == [name])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
