"""Processors and memory that this process may use, including the limits of its cgroups."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

UNLIMITED = 1 << 62
"""Bytes; version 1 of cgroups writes a larger number if there is no limit."""
LEAST_WORKER = 64 << 20
"""Bytes that a worker process needs at least, for the interpreter and its imports."""


def cpu_limit(root: Path = Path("/")) -> int:
    """Return the number of processors that this process may use: by its affinity, and by cgroup quotas, rounded up.

    Args:
        root: the directory that contains /proc and /sys.
    """
    from joblib import cpu_count

    # joblib reads only the quota at the mount of cgroups, not those of nested groups, in which services run.
    quotas = [quota for folder in _cgroups(root, "cpu") if (quota := _quota_of(folder)) is not None]
    return max(1, min([int(cpu_count()), *quotas]))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process and its children may use, as limited by its cgroups and the machine."""
    limits = [limit for folder in _cgroups(root, "memory") if (limit := _limit_of(folder)) is not None]
    total = _field(root / "proc/meminfo", "MemTotal:")
    return min([*limits, *([total * 1024] if total is not None else [])], default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Return the bytes that are still available within the limits of cgroups and machine; None if unknown."""
    left = [limit - _used_of(folder) for folder in _cgroups(root, "memory") if (limit := _limit_of(folder)) is not None]
    available = _field(root / "proc/meminfo", "MemAvailable:")
    return min([*left, *([available * 1024] if available is not None else [])], default=None)


def descendants(pid: int) -> list[int]:
    """Return the ids of all child processes of a process, recursively; empty where there is no /proc."""
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
    """Return the resident memory of a process in bytes; 0 if it does not exist."""
    try:
        pages = int((root / f"proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return _resident_elsewhere(pid) if not (root / "proc/self").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _resident_elsewhere(pid: int) -> int:
    """Return the resident memory of a process where there is no /proc."""
    try:
        import psutil
    except ImportError:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def peak(pid: int, root: Path = Path("/")) -> int:
    """Return the peak resident memory of a process since `forget_peak`, or the current one where there is no peak."""
    kilobytes = _field(root / f"proc/{pid}/status", "VmHWM:")
    return resident(pid, root) if kilobytes is None else kilobytes * 1024


def forget_peak(pid: int, root: Path = Path("/")) -> None:
    """Reset the peak resident memory of a process, if the system allows it."""
    with suppress(OSError):
        (root / f"proc/{pid}/clear_refs").write_text("5", encoding="utf-8")


def started(pid: int, root: Path = Path("/")) -> float:
    """Return the start time of a process, which distinguishes processes with the same id; -1 if it does not exist."""
    try:
        text = (root / f"proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return -1.0 if fields[0] in "ZX" else float(fields[19])  # a zombie does not count
    except (OSError, ValueError, IndexError):
        if (root / "proc/self").exists():
            return -1.0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1.0
    except OSError:  # the process of another user
        pass
    return 0.0


def boot(root: Path = Path("/")) -> str:
    """Return what tells this run of the machine from others, between which its monotonic clock begins anew."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):  # no Linux: when it began, give or take the corrections of its clock
        return str(round((time.time() - time.monotonic()) / 600))


def queued() -> float:
    """Return the seconds that this thread has waited for a processor so far; 0 if unknown."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def workers_that_fit(wanted: int, root: Path = Path("/")) -> int:
    """Return how many worker processes fit in memory, at most `wanted`, if each uses as much as this process."""
    limit, left = memory_limit(root), memory_left(root)
    if limit is None or left is None:
        return wanted
    each = max(LEAST_WORKER, min(resident(os.getpid(), root), limit // 4))
    return max(1, min(wanted, left // each))


# cgroups


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of this process's cgroup and its parents."""
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
        # In a container the path is often that of the host, while the container's cgroup is mounted at the root.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for depth in range(len(parts), -1, -1):
                folder = mount.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


def _quota_of(folder: Path) -> int | None:
    """Return the number of processors that a cgroup allows, or None."""
    try:
        quota, period = map(int, (folder / "cpu.max").read_text(encoding="utf-8").split())
    except (OSError, ValueError):  # "max" if there is no quota
        quota, period = (_number(folder / f"cpu.cfs_{name}_us") or 0 for name in ("quota", "period"))
    return max(1, -(-quota // period)) if quota > 0 and period > 0 else None


def _limit_of(folder: Path) -> int | None:
    """Return the bytes that a cgroup allows, or None."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is not None and 0 < limit < UNLIMITED:
            return limit
    return None


def _used_of(folder: Path) -> int:
    """Return the bytes that a cgroup uses, without the page cache that can be reclaimed."""
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    names = ("total_inactive_file", "inactive_file")  # in version 1 the second one excludes nested groups
    reclaimable = next((each for name in names if (each := _field(folder / "memory.stat", name)) is not None), 0)
    return max(0, used - reclaimable)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max" if there is no limit
        return None


def _field(path: Path, name: str) -> int | None:
    """Return the number that follows a name in a file with one "name number" pair per line, or None."""
    try:
        lines = (line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
        return next(int(line[1]) for line in lines if line[:1] == [name])
    except (OSError, ValueError, IndexError, StopIteration):
        return None
