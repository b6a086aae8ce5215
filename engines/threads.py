"""How many threads an engine computes with on the CPU."""

from __future__ import annotations

import os

from common.machine import cores


def threads() -> int:
    """Return how many threads compute: OMP_NUM_THREADS, else one for each core."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else cores()
