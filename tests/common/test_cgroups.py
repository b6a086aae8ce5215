"""`common.cgroups`: limits of this process's groups, read from a made-up folder, and from a real group."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common.cgroups import MemoryLimit, core_limits, memory_limits
from common.files import text_of
from common.python_child import child_environment

NONE = str((1 << 63) - 4096)
LIMIT = 300 << 20


def system(root: Path, files: Mapping[str, str]) -> Path:
    """Write the files of a system below `root`, and return it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def v2(group: str, limit: str, used: int, high: str = "max", inactive: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup{group}"
    stat = f"anon 7\ninactive_file {inactive}\nactive_file 9"
    files = {"max": limit, "high": high, "current": str(used), "stat": stat}
    return {f"{folder}/memory.{name}": text for name, text in files.items()}


def v1(group: str, limit: str, used: int, inactive: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory{group}/memory"
    stat = f"cache 1\ntotal_inactive_file {inactive}"
    return {f"{folder}.limit_in_bytes": limit, f"{folder}.usage_in_bytes": str(used), f"{folder}.stat": stat}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", v2("", "2000", 500), [(2000, 1500)]),
        ("0::/a/b", v2("/a/b", "max", 5) | v2("/a", "2000", 500) | v2("", "9000", 8000), [(2000, 1500), (9000, 1000)]),
        ("0::/a", v2("/a", "2000", 500, high="1000"), [(2000, 1500), (1000, 500)]),
        ("0::/a", v2("/a", "2000", 1900, inactive=700), [(2000, 800)]),
        ("0::/a", v2("/a", "2000", 2500), [(2000, 0)]),
        ("0::/docker/0a1b", v2("", "2000", 500), [(2000, 1500)]),
        ("0::/../elsewhere", v2("", "2000", 500), [(2000, 1500)]),
        ("4:memory:/x\n0::/", v1("/x", "700", 100, inactive=20) | v1("", NONE, 900), [(700, 620)]),
        ("4:memory:/docker/0a1b", v1("", "700", 100), [(700, 600)]),
        ("4:cpu:/x\n1:name=systemd:/x", v1("/x", "700", 100), []),
        ("0::/a", v2("/a", "max", 500), []),
        ("0::/a", {"sys/fs/cgroup/a/memory.max": "2000"}, []),
        ("0::/a", v2("/a", "nonsense", 500), []),
        ("", {}, []),
        ("garbage", {}, []),
    ],
    ids=lambda value: str(value)[:30],
)
def test_memory_limits_of_all_groups_count(
    tmp_path: Path, groups: str, files: Mapping[str, str], expected: list[tuple[int, int]]
) -> None:
    root = system(tmp_path, {"proc/self/cgroup": groups, **files})
    assert memory_limits(root) == [MemoryLimit(*limit) for limit in expected]


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, [1.5]),
        ("0::/", {"cpu.max": "400000 200000"}, [2.0]),
        ("2:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"}, [0.5]),
        ("2:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, []),
        ("2:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "50000"}, []),
        ("0::/a", {"a/cpu.max": "half"}, []),
        ("", {}, []),
    ],
    ids=lambda value: str(value)[:30],
)
def test_quotas_of_all_groups_count(
    tmp_path: Path, groups: str, files: Mapping[str, str], expected: list[float]
) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert core_limits(system(tmp_path, {"proc/self/cgroup": groups, **files})) == expected


@pytest.fixture
def group() -> Iterator[Path]:
    """Make a group with a limit of memory below this process's own one, if the system allows that."""
    own = {line.split(":")[1]: line.split(":", 2)[2] for line in text_of(Path("/proc/self/cgroup")).splitlines()}
    version_1 = "memory" in own
    folder = Path(f"/sys/fs/cgroup/{'memory' if version_1 else ''}{own.get('memory', own.get('', ''))}")
    made = folder / f"exobus-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT))
    except OSError as error:
        if made.is_dir():
            made.rmdir()
        pytest.skip(f"no control group can be made here ({error})")
    yield made
    made.rmdir()


def test_process_in_a_real_group_has_its_limit(group: Path) -> None:
    program = "import sys; sys.stdin.readline(); from common.cgroups import memory_limits; print(memory_limits())"
    command = [sys.executable, "-c", f"{program}; from common.machine import memory; print(memory().available)"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=child_environment()) as child:
        (group / "cgroup.procs").write_text(str(child.pid))
        output, _ = child.communicate("\n", timeout=30)
    limits, available = output.splitlines()
    assert f"limit={LIMIT}" in limits
    assert 0 < int(available) < LIMIT
