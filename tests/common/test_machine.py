"""`common.machine`: memory and cores within the limits of a process, and the identity of a machine."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from common.machine import cores, machine_id, memory, return_mapped_pages
from common.python_child import child_environment

BOOT = "proc/sys/kernel/random/boot_id"
ID, OTHER = "3d1219c7c4c5404aaa1f6d2a48adfda4", "00112233445566778899aabbccddeeff"


def system(root: Path, files: dict[str, str], processes: str = "pid:[4026531836]") -> Path:
    """Write the files of a system, and the link of its namespace of processes; return their folder."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    (root / "proc/self/ns").mkdir(parents=True)
    (root / "proc/self/ns/pid").symlink_to(processes)
    return root


def limited(root: Path, limit: int, used: int) -> Path:
    group = {"memory.max": str(limit), "memory.current": str(used), "cpu.max": "150000 100000"}
    return system(root, {"proc/self/cgroup": "0::/", **{f"sys/fs/cgroup/{name}": text for name, text in group.items()}})


def test_machine_without_limits_offers_what_is_free(tmp_path: Path) -> None:
    total, available = memory(tmp_path)
    assert total == psutil.virtual_memory().total
    assert 0 < available < total


def test_container_offers_what_its_group_leaves(tmp_path: Path) -> None:
    assert memory(limited(tmp_path, 100_000_000, 30_000_000)) == (100_000_000, 70_000_000)


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limit_of_a_process_bounds_its_memory(kind: str) -> None:
    limit = 1 << 30
    limited_to = f"import resource as r; r.setrlimit(r.{kind}, ({limit}, r.RLIM_INFINITY))"
    found = subprocess.run(
        [sys.executable, "-c", f"{limited_to}; from common.machine import memory; print(*memory())"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert [int(word) for word in found.stdout.split()] == [limit, limit]


def test_quota_bounds_the_cores(tmp_path: Path) -> None:
    assert cores(limited(tmp_path, 1, 1)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds a process to cores")
def test_affinity_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    allowed = os.sched_getaffinity(0)
    assert cores(tmp_path) == min(len(allowed), 8)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_machine_is_the_same_for_all_processes() -> None:
    ask = [sys.executable, "-c", "from common.machine import machine_id; print(machine_id())"]
    found = {subprocess.check_output(ask, env=child_environment(), text=True, timeout=30).strip() for _ in range(2)}
    assert found == {machine_id()}


def test_containers_and_clones_are_machines_of_their_own(tmp_path: Path) -> None:
    systems = [
        ({"etc/machine-id": ID, BOOT: "b1"}, "pid:[1]"),
        ({"etc/machine-id": ID, BOOT: "b1"}, "pid:[2]"),  # a container with the machine's id
        ({"etc/machine-id": OTHER, BOOT: "b1"}, "pid:[1]"),  # one with an id of its own
        ({"etc/machine-id": ID, BOOT: "b2"}, "pid:[1]"),  # a clone
        ({BOOT: "b1"}, "pid:[1]"),
    ]
    roots = [system(tmp_path / str(at), files, processes) for at, (files, processes) in enumerate(systems)]
    found = [machine_id(root) for root in roots]
    assert len(set(found)) == len(found)
    assert found == [machine_id(root) for root in roots]
    assert all(len(one) == 16 and ID not in one for one in found)


def test_machine_without_ids_is_known_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "ada")
    found = []
    for address in (0x02_42_AC_11_00_02, 0x02_42_AC_11_00_03, 1 << 40 | 5, 1 << 40 | 6):
        monkeypatch.setattr(uuid, "getnode", lambda address=address: address)
        found.append(machine_id(tmp_path))
    assert len(set(found[:3])) == 3
    assert found[2] == found[3], "a made-up address is another one in each process"


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is asked to return memory")
def test_freed_memory_goes_back_to_the_system() -> None:
    program = (
        "from psutil import Process; from common.machine import return_freed_memory;"
        "size = lambda: Process().memory_info().rss;"
        "blocks = [b'x' * 100_000 for _ in range(2000)]; last = b'y' * 100_000; del blocks; before = size();"
        "return_freed_memory(); print(before - size())"
    )
    command = [sys.executable, "-c", program]
    returned = int(subprocess.check_output(command, env=child_environment(), text=True, timeout=30))
    assert returned > 100_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count the pages of files elsewhere")
def test_pages_of_a_mapped_file_are_let_go(tmp_path: Path) -> None:
    def resident() -> int:
        return int(psutil.Process().memory_info().shared)

    size = 32 << 20
    (tmp_path / "weights").write_bytes(bytes(range(256)) * (size // 256))
    with (tmp_path / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        total = sum(mapped[::4096])
        before = resident()
        return_mapped_pages()
        assert before - resident() > size // 2
        assert sum(mapped[::4096]) == total
