"""`python -m tests.bench.plot [BENCH.json [PICTURE.png]]`: the throughput that `make bench` measured, as a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from tests.bench.figures import Figure

RESULTS = Path("build/bench.json")
PICTURE = Path("docs/throughput.png")
COLOURS = ("#4c6a92", "#c8553d", "#588157", "#8a6bb1")


def main() -> None:
    """Draw the picture, or print in one sentence what is missing."""
    given = [Path(argument) for argument in sys.argv[1:3]]
    results, picture = (*given, *(RESULTS, PICTURE)[len(given) :])
    if not results.is_file():
        sys.exit(f"{results} is not there; run: make bench ONLY=throughput")
    curves = series(msgspec.json.decode(results.read_bytes(), type=list[Figure]))
    if not curves:
        sys.exit(f"{results} has no figure named throughput; run: make bench ONLY=throughput")
    draw(curves, picture)
    print(f"wrote {picture}")


def series(figures: Iterable[Figure]) -> dict[int, list[tuple[int, float]]]:
    """Return, by number of stages, (streams, tokens per second), the fewest streams first."""
    curves: dict[int, list[tuple[int, float]]] = {}
    for figure in figures:
        if figure.name == "throughput":
            for stages, streams, rate in sorted(figure.points):
                curves.setdefault(stages, []).append((streams, rate))
    return curves


def draw(curves: Mapping[int, list[tuple[int, float]]], picture: Path) -> None:
    """Draw one line for each number of stages. Needs matplotlib, the extra `bench`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    for color, (stages, points) in zip(COLOURS, curves.items(), strict=False):
        streams, rates = zip(*points, strict=True)
        axes.plot(streams, rates, marker="o", color=color, label=f"{stages} stage{'s' if stages > 1 else ''}")
    ticks = sorted({streams for points in curves.values() for streams, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("streams at a time")
    axes.set_ylabel("tokens a second, all streams together")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper left", reverse=True)
    figure.savefig(picture)


if __name__ == "__main__":
    main()
