"""Loads a shard as an engine process does, and prints how much memory that took: `python -m tests.support.held_memory`.

The arguments are the engine, the precision, the bits to round to, the path of the weights and their number of layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from cluster.shard import whole
from common.machine import return_freed_memory
from engines.registry import create


def main(engine_name: str, precision: str, bits: str, path: str, n_layers: str) -> None:
    """Print the bytes by which this process grew."""
    engine = create(engine_name, precision, int(bits))
    before = psutil.Process().memory_info().rss
    engine.load(whole("m", int(n_layers)), Path(path))
    return_freed_memory()
    sys.stdout.write(f"{psutil.Process().memory_info().rss - before}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
