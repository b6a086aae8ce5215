"""The result of a benchmark, as values, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table


class Figure(msgspec.Struct, frozen=True):
    """One number. `floor` is the limit of the hardware or the bare library in the same run.

    `baseline` is the value that a ratio compares with.

    `points` belong to a curve: (stages, streams, tokens per second) each.
    """

    name: str
    value: float
    unit: str
    goal: str
    floor: float | None = None
    baseline: float | None = None
    note: str = ""
    points: tuple[tuple[int, int, float], ...] = ()


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1))


def show(figures: Sequence[Figure]) -> None:
    """Print the figures as a table."""
    table = Table("name", "value", "unit", "goal", "floor", "baseline", "note")
    for figure in figures:
        numbers = [_short(figure.value), figure.unit, figure.goal, _short(figure.floor), _short(figure.baseline)]
        table.add_row(figure.name, *numbers, figure.note)
    Console(width=140).print(table)


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"
