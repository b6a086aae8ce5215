"""`python -m tests.bench [--only name,name]`: measure, print a table, write build/bench.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench import (
    fairness,
    hops,
    keys,
    overlap,
    prefill,
    ring,
    same_text,
    stall,
    start,
    strangers,
    texts,
    throughput,
    wire,
)
from tests.bench.figures import Figure, show, write
from tests.bench.peers import beside
from tests.bench.shapes import measure as shapes

RESULTS = Path("build/bench.json")
MEASURES: dict[Callable[[], list[Figure]], tuple[str, ...]] = {
    start.measure: ("start_s", "idle_mb"),
    ring.measure: ("hop_cold_us", "decode_eff_2", "decode_eff_4", "batch_gain_8", "ring2_gain_8"),
    hops.measure: ("hop_us",),
    keys.measure: ("hop_tcp_us", "hop_curve_us", "decode_eff_tcp_2", "decode_eff_curve_2", "bulk_ratio"),
    overlap.measure: ("overlap_eff_2", "overlap_eff_4", "overlap_eff_8"),
    prefill.measure: ("prefill_gain",),
    stall.measure: ("stall_ratio",),
    fairness.measure: ("jain_8", "cancel_ms"),
    wire.measure: ("bytes_per_hop",),
    texts.measure: ("lookup_tokens_per_pass", "lookup_speed", "lookup_equal", "prefix_ttft"),
    **{partial(same_text.measure, side): (side.name,) for side in same_text.SIDES},
    beside.measure: beside.NAMES,
    strangers.measure: ("strangers", "half_open_kib", "idle_reaped_s", "join_crowd_ms"),
    throughput.measure: ("throughput",),
    **{partial(shapes.measure, shape): shapes.names(shape) for shape in (shapes.DEFAULT, *shapes.SHAPES)},
}


def main() -> None:
    """Run the measurements of the wanted figures."""
    names = [name for group in MEASURES.values() for name in group]
    parser = argparse.ArgumentParser(description="measure the numbers of the design")
    parser.add_argument(
        "--only", default="", help=f"some of {', '.join(names)}, or their beginnings; separated by commas"
    )
    only = tuple(name for name in parser.parse_args().only.split(",") if name) or ("",)
    if unknown := [beginning for beginning in only if not any(name.startswith(beginning) for name in names)]:
        parser.error(f"there is no figure {', '.join(unknown)}; there are {', '.join(names)}")
    figures: list[Figure] = []
    for measure, group in MEASURES.items():
        if any(name.startswith(only) for name in group):
            figures += [figure for figure in measure() if figure.name.startswith(only)]
            write(figures, RESULTS)  # a later measure may fail, on this machine or another
    show(figures)


if __name__ == "__main__":
    main()
