"""The machine as a process may use it: its memory, its cores, and which machine it is."""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import os
import platform
import resource
import signal
import sys
import uuid
from pathlib import Path
from typing import NamedTuple

import psutil

from common.cgroups import core_limits, memory_limits
from common.files import text_of

_APPLICATION = b"exobus"
_IDENTITY_FILES = ("etc/machine-id", "proc/sys/kernel/random/boot_id")
_MADV_DONTNEED = 4  # madvise(2)
_PR_SET_PDEATHSIG = 1  # prctl(2)
_RANDOM_ADDRESS = 1 << 40  # the bit that Python sets in a hardware address that it had to make up (RFC 9562, 6.10)


class Memory(NamedTuple):
    """Memory in bytes: all of it, and what is free or can be freed at once."""

    total: int
    available: int


def memory(root: Path = Path("/")) -> Memory:
    """Return the machine's memory within the limits of this process: control groups, address space and data.

    `root` is the folder in which `proc` and `sys` are.
    """
    system, groups = psutil.virtual_memory(), memory_limits(root)
    soft = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    limits = [limit for limit in soft if limit != resource.RLIM_INFINITY]
    return Memory(
        min([system.total, *limits, *(group.limit for group in groups)]),
        min([system.available, *limits, *(group.left for group in groups)]),
    )


def cores(root: Path = Path("/")) -> int:
    """Return how many cores this process can keep busy, at least 1.

    They are physical cores, as far as its affinity and the quotas of its control groups allow.
    """
    found = [psutil.cpu_count(logical=False) or os.cpu_count() or 1, *core_limits(root)]
    if sys.platform == "linux":
        found.append(len(os.sched_getaffinity(0)))
    return max(int(min(found)), 1)


def machine_id(root: Path = Path("/")) -> str:
    """Return 16 hex digits that are the same for all processes of a machine, and others in each container.

    They follow from machine-id(5), which must not leave the machine and is therefore hashed, from the boot, as clones
    of a machine share that id, and from the namespace of processes, as containers may share both. Without any of them,
    from the hardware address and the host name. Call it once for a node: the hardware address may be a random one.
    """
    facts = [text_of(root / file) for file in _IDENTITY_FILES]
    if not any(facts):
        address = uuid.getnode()
        facts = [platform.node(), "" if address & _RANDOM_ADDRESS else f"{address:012x}"]
    facts.append(_link(root / "proc/self/ns/pid"))
    return hmac.new(_APPLICATION, "\0".join(facts).encode(), hashlib.sha256).hexdigest()[:16]


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, if the C library keeps it and can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def return_mapped_pages() -> None:
    """Let go of the pages of files that are mapped to be read, shared with the system's cache (Linux).

    What is read again comes from that cache. Pages that are locked stay.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        edges, permissions, *_ = line.split(maxsplit=2)
        if permissions == "r--s":
            begin, end = (int(edge, 16) for edge in edges.split("-"))
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def continue_when_parent_ends() -> None:
    """Let the system continue this process, if it is stopped, when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def _link(file: Path) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""
