"""`python -m tests.faults [--only NAMES] [--count N --seed S] [--rings N]`: run faults on real rings.

It prints a table and writes build/faults.json. The exit status is 1 if a cell misses the goal.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench.machine import load_sentence
from tests.faults import table
from tests.faults.cells import Cell, batches, chosen, drawn, expected_s, matrix
from tests.faults.driver import Result, Run, run
from tests.faults.model import write_model
from tests.faults.seen import CellSeen, misses

RESULTS = Path("build/faults.json")
RINGS = 2 * (os.cpu_count() or 1) + 1  # at a time: most of them only wait, but each computes while it forms
INTERRUPTED = 130


def main() -> int:
    """Run the chosen cells, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description="run faults on real rings and print what clients saw")
    parser.add_argument("--only", default="", help="names of cells, separated by commas; * stands for any part")
    parser.add_argument("--count", type=int, default=0, help="draw so many of them; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--rings", type=int, default=RINGS, help="how many rings run at a time")
    parser.add_argument("--list", action="store_true", help="print the names of the cells and run none")
    options = parser.parse_args()
    try:
        cells = drawn(chosen(matrix(), options.only), options.count, options.seed)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        sys.stdout.writelines(f"{cell.name}\n" for cell in cells)
        return 0
    results, ended = _run(cells, options.rings)
    write(results, RESULTS)
    sys.stdout.write(f"{table.full(results)}\n{table.summary(results)}")
    return int(any(misses(cell, seen) for cell, seen in results)) if ended else INTERRUPTED


def _run(cells: Sequence[Cell], rings: int) -> tuple[list[Result], bool]:
    """Run cells, and say on standard error how far they are.

    Returns the results in the order of the matrix, and whether they are all there: after Ctrl-C some are missing.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends the rings as Ctrl-C does
    parts = batches(cells, rings)
    results: list[Result] = []
    begun = time.monotonic()
    _say(load_sentence())
    _say(f"{len(cells)} cells, about {expected_s(cells) / min(rings, len(parts)) / 60 + 1:.0f} minutes")

    def report(cell: Cell, seen: CellSeen) -> None:
        results.append((cell, seen))
        _say(f"{time.monotonic() - begun:5.0f} s  {cell.name}: {'; '.join(misses(cell, seen)) or 'met'}")

    with tempfile.TemporaryDirectory() as folder:
        try:
            run(parts, rings, Run(write_model(Path(folder) / "cards"), report))
        except KeyboardInterrupt:
            _say("interrupted; all rings have ended")
    return sorted(results, key=lambda result: cells.index(result[0])), len(results) == len(cells)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def write(results: Sequence[Result], path: Path) -> None:
    """Write the results as JSON, with what each cell missed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [msgspec.to_builtins(seen) | {"misses": misses(cell, seen)} for cell, seen in results]
    path.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1))


if __name__ == "__main__":
    sys.exit(main())
