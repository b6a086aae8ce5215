"""What the control groups of this process allow, from the files of Linux; other systems have none. Sets no limits.

A group's limit binds all groups below it, so each one on the way to the root counts. For the files see
https://docs.kernel.org/admin-guide/cgroup-v2.html and, of version 1, .../cgroup-v1/memory.html and
https://docs.kernel.org/scheduler/sched-bwc.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.files import text_of

UNLIMITED = 1 << 62  # version 1 writes the largest number of pages as bytes
_MOUNT = "sys/fs/cgroup"
_MEMORY_FILES = (  # limit, usage, and the part of the usage in memory.stat that the kernel frees for others
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class MemoryLimit(NamedTuple):
    """A group's limit of memory, and how much of it is left, in bytes. Cached files count as left."""

    limit: int
    left: int


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Return the limits of this process's groups. `root` is the folder in which `proc` and `sys` are."""
    limits = []
    for folder in _groups(root, "memory"):
        for limit_file, usage_file, cached in _MEMORY_FILES:
            limit, used = _number(folder / limit_file), _number(folder / usage_file)
            if limit is not None and used is not None and limit < UNLIMITED:
                used -= min(_counter(folder / "memory.stat", cached), used)
                limits.append(MemoryLimit(limit, max(limit - used, 0)))
    return limits


def core_limits(root: Path = Path("/")) -> list[float]:
    """Return how many cores' time the groups of this process may use; see `memory_limits`."""
    limits = []
    for folder in _groups(root, "cpu"):
        quota, _, period = text_of(folder / "cpu.max").partition(" ")  # "max 100000", or two times in microseconds
        if not quota:
            quota, period = (text_of(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdecimal() and period.strip("0").isdecimal():  # version 1 has the quota -1 for none
            limits.append(int(quota) / int(period))
    return limits


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of each group of this process that may have a controller, with those above it.

    In a container, the path may be that of the host: then only the mounted root exists, which is the container's group.
    """
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for mount in {controllers, controller} if controllers else ("", "unified"):
            for depth in range(len(parts), -1, -1):
                yield root.joinpath(_MOUNT, mount, *parts[:depth])


def _number(file: Path) -> int | None:
    text = text_of(file)
    return int(text) if text.isdecimal() else None


def _counter(file: Path, name: str) -> int:
    """Return a number of a file with lines of names and numbers; 0 if it has none of this name."""
    for line in text_of(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0
