"""What a process may use: its affinity, and what the cgroups above it allow, on made folders of /proc and /sys."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opero.runtime import machine
from opero.runtime.machine import cpu_limit, memory_left, memory_limit, peak, resident, started, workers_that_fit

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20
ALL = cpu_limit()


def write(root: Path, **files: object) -> None:
    """Files by their path, whose slashes are written as `__`, and dots as `_dot_`."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def make(root: Path, cgroup: str = "", total: int = 16000 * MB, available: int = 12000 * MB) -> Path:
    write(root, proc__meminfo=f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB")
    write(root, proc__self__cgroup=cgroup)
    write(root, **{f"proc__{os.getpid()}__statm": f"1 {100 * MB // os.sysconf('SC_PAGE_SIZE')} 0 0 0 0 0"})
    return root


# Processors


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_affinity_limits_the_processors() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from opero.runtime.machine import cpu_limit; print(cpu_limit())"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert text.stdout == "1\n"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", ALL), ("50000 100000", 1), ("100000 100000", 1), ("1000 100000", 1), ("99900000 100000", ALL)],
)
def test_a_quota_of_version_2_limits_the_processors(tmp_path: Path, quota: str, expected: int) -> None:
    root = make(tmp_path, "0::/service\n")
    write(root, sys__fs__cgroup__service__cpu_dot_max=quota)
    assert cpu_limit(root) == expected


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
@pytest.mark.parametrize(("quota", "expected"), [(-1, ALL), (20000, 1), (0, ALL)])
def test_a_quota_of_version_1_limits_the_processors(
    tmp_path: Path, controllers: str, quota: int, expected: int
) -> None:
    root = make(tmp_path, f"7:{controllers}:/service\n3:cpuset:/\n")
    folder = root / "sys/fs/cgroup" / controllers / "service"
    write(folder, cpu_dot_cfs_quota_us=quota, cpu_dot_cfs_period_us=100000)
    assert cpu_limit(root) == expected


def test_a_quota_is_rounded_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 64)
    root = make(tmp_path, "0::/a/b\n")
    write(root, sys__fs__cgroup__a__cpu_dot_max="250000 100000", sys__fs__cgroup__a__b__cpu_dot_max="900000 100000")
    assert cpu_limit(root) == 3  # the least of nested groups


def test_a_container_sees_its_quota_where_its_groups_are_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 64)
    root = make(tmp_path, "0::/docker/4b1f\n")
    write(root, sys__fs__cgroup__cpu_dot_max="400000 100000")
    assert cpu_limit(root) == 4


@pytest.mark.parametrize("quota", ["", "max", "nonsense", "100000", "100000 0", "1 2 3"])
def test_what_is_no_quota_is_no_limit(tmp_path: Path, quota: str) -> None:
    root = make(tmp_path, "0::/\n")
    write(root, sys__fs__cgroup__cpu_dot_max=quota)
    assert cpu_limit(root) == ALL


def test_a_machine_without_cgroups_has_its_processors(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path) == ALL >= 1


# Memory


def test_the_machine_limits_memory_where_no_group_does(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/\n", total=8000 * MB, available=3000 * MB)
    assert memory_limit(root) == 8000 * MB
    assert memory_left(root) == 3000 * MB


def test_a_group_of_version_2_limits_memory(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/service\n")
    write(root, sys__fs__cgroup__service__memory_dot_max=2000 * MB)
    write(root, sys__fs__cgroup__service__memory_dot_current=500 * MB)
    assert memory_limit(root) == 2000 * MB
    assert memory_left(root) == 1500 * MB


@pytest.mark.parametrize("controllers", ["memory", "hugetlb,memory"])
def test_a_group_of_version_1_limits_memory(tmp_path: Path, controllers: str) -> None:
    root = make(tmp_path, f"9:name=systemd:/x\n4:{controllers}:/service\n0::/\n")
    folder = root / "sys/fs/cgroup" / controllers
    write(folder, memory_dot_limit_in_bytes=9223372036854771712, memory_dot_usage_in_bytes=9000 * MB)
    write(folder / "service", memory_dot_limit_in_bytes=2000 * MB, memory_dot_usage_in_bytes=500 * MB)
    assert memory_limit(root) == 2000 * MB
    assert memory_left(root) == 1500 * MB


def test_of_nested_groups_the_least_counts(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/a/b/c\n")
    write(root, sys__fs__cgroup__a__memory_dot_max=1500 * MB, sys__fs__cgroup__a__memory_dot_current=200 * MB)
    write(root, sys__fs__cgroup__a__b__memory_dot_max="max", sys__fs__cgroup__a__b__memory_dot_current=100 * MB)
    write(root, sys__fs__cgroup__a__b__c__memory_dot_max=3000 * MB, sys__fs__cgroup__a__b__c__memory_dot_current=MB)
    assert memory_limit(root) == 1500 * MB
    assert memory_left(root) == 1300 * MB


def test_a_group_that_others_have_used_up_leaves_little_though_its_limit_is_not_the_least(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/a/b\n")
    write(root, sys__fs__cgroup__a__memory_dot_max=4000 * MB, sys__fs__cgroup__a__memory_dot_current=3900 * MB)
    write(root, sys__fs__cgroup__a__b__memory_dot_max=2000 * MB, sys__fs__cgroup__a__b__memory_dot_current=50 * MB)
    assert memory_limit(root) == 2000 * MB
    assert memory_left(root) == 100 * MB


def test_a_machine_that_others_have_used_up_leaves_little_to_a_group(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/a\n", available=300 * MB)
    write(root, sys__fs__cgroup__a__memory_dot_max=4000 * MB, sys__fs__cgroup__a__memory_dot_current=500 * MB)
    assert memory_left(root) == 300 * MB


@pytest.mark.parametrize(
    ("group", "stat"), [("0::/a", "inactive_file"), ("4:memory:/a", "total_inactive_file")], ids=["2", "1"]
)
def test_files_that_the_system_only_keeps_in_memory_are_not_in_use(tmp_path: Path, group: str, stat: str) -> None:
    root = make(tmp_path, f"{group}\n")
    folder = root / "sys/fs/cgroup" / ("a" if group.startswith("0") else "memory/a")
    write(folder, memory_dot_max=2000 * MB, memory_dot_current=1900 * MB)
    write(folder, memory_dot_limit_in_bytes=2000 * MB, memory_dot_usage_in_bytes=1900 * MB)
    write(folder, memory_dot_stat=f"anon {400 * MB}\nactive_file 1\n{stat} {1500 * MB}\n")
    assert memory_left(root) == 1600 * MB


def test_a_container_whose_path_is_that_of_the_host_sees_its_limit(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/system.slice/docker-77.scope\n")
    write(root, sys__fs__cgroup__memory_dot_max=1000 * MB, sys__fs__cgroup__memory_dot_current=100 * MB)
    assert memory_limit(root) == 1000 * MB
    assert memory_left(root) == 900 * MB


def test_missing_and_unreadable_files_are_no_limit(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    assert memory_left(tmp_path) is None
    assert workers_that_fit(7, tmp_path) == 7
    root = make(tmp_path, "nonsense\n\n:::\n0::/x\n")
    write(root, sys__fs__cgroup__x__memory_dot_max="lots", sys__fs__cgroup__memory_dot_max=-5)
    assert memory_limit(root) == 16000 * MB
    (root / "proc/meminfo").write_text("MemTotal:\n")
    assert memory_limit(root) is None


def test_a_limit_without_a_count_of_what_is_in_use_leaves_all_of_it(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/x\n")
    write(root, sys__fs__cgroup__x__memory_dot_max=700 * MB)
    assert memory_left(root) == 700 * MB


# Workers


def test_so_many_workers_fit_as_there_is_memory_for_if_each_takes_what_this_process_does(tmp_path: Path) -> None:
    root = make(tmp_path, "0::/x\n")
    write(root, sys__fs__cgroup__x__memory_dot_max=1000 * MB, sys__fs__cgroup__x__memory_dot_current=450 * MB)
    assert workers_that_fit(64, root) == 5
    assert workers_that_fit(3, root) == 3


@given(
    wanted=st.integers(1, 200),
    limit=st.integers(1, 1 << 50) | st.none(),
    used=st.integers(0, 1 << 50) | st.none(),
    available=st.integers(0, 1 << 40),
)
def test_at_least_one_worker_fits_and_never_more_than_are_asked_for(
    tmp_path_factory: pytest.TempPathFactory, wanted: int, limit: int | None, used: int | None, available: int
) -> None:
    root = make(tmp_path_factory.mktemp("root"), "0::/x\n", available=available)
    if limit is not None:
        write(root, sys__fs__cgroup__x__memory_dot_max=limit)
    if used is not None:
        write(root, sys__fs__cgroup__x__memory_dot_current=used)
    fit = workers_that_fit(wanted, root)
    assert 1 <= fit <= wanted
    left = memory_left(root)
    assert left is not None
    assert fit == 1 or fit * machine.LEAST_WORKER <= left


@given(quota=st.integers(-1, 10**8), period=st.integers(0, 10**6))
def test_there_is_always_a_processor_and_never_more_than_the_machine_has(
    tmp_path_factory: pytest.TempPathFactory, quota: int, period: int
) -> None:
    root = make(tmp_path_factory.mktemp("root"), "0::/x\n2:cpu:/y\n")
    write(root, sys__fs__cgroup__x__cpu_dot_max=f"{quota} {period}")
    write(root / "sys/fs/cgroup/cpu/y", cpu_dot_cfs_quota_us=quota, cpu_dot_cfs_period_us=period)
    assert 1 <= cpu_limit(root) <= ALL


# Processes


def test_a_process_is_known_by_its_number_and_beginning() -> None:
    code = "print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert started(child.pid) == started(child.pid) >= 0
        assert started(child.pid) != started(1)
        assert resident(child.pid) == pytest.approx(psutil.Process(child.pid).memory_info().rss, rel=0.9)
        assert peak(child.pid) >= resident(child.pid) * 0.5
    finally:
        child.communicate(b"\n", timeout=120)
    assert started(child.pid) == -1
    assert resident(child.pid) == 0
    assert peak(child.pid) == 0


def test_a_name_with_brackets_and_spaces_does_not_confuse(tmp_path: Path) -> None:
    fields = " ".join(map(str, range(3, 53)))
    write(tmp_path, proc__77__stat=f"77 (a) b (c d) {fields}")
    assert started(77, tmp_path) == 22


def test_the_real_machine_has_limits() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("there is no /proc")
    total = psutil.virtual_memory().total
    limit, left = memory_limit(), memory_left()
    assert limit is not None
    assert left is not None
    assert 0 < limit <= total
    assert left <= limit
