"""The name of this machine's processor."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_FIELDS = ("model name", "Hardware", "Model")  # of /proc/cpuinfo, on x86 and on ARM


def processor_name() -> str:
    """Return the processor's name from /proc/cpuinfo, or what Python knows if there is no such file."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(_FIELDS))
    return next(named, platform.machine())
