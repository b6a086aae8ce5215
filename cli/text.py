"""Sizes, times and tables as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_TIME = re.compile(r"(-?)(\d+)([smh]?)", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return `12GB`, `1.5 GiB` or plain bytes as a number of bytes. Raises ValueError with a sentence."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size; write 12GB, 1.5GiB or a number of bytes")
    return int(float(match[1]) * unit)


def parse_seconds(text: str) -> int:
    """Return `30s`, `10m`, `2h` or plain seconds as a number of seconds, -1 for any negative number.

    Raises ValueError with a sentence.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time; write 30s, 10m, 2h, 0, or -1 for ever")
    sign, count, unit = match.groups()
    return -1 if sign and int(count) else int(count) * _SECONDS[unit.lower()]


def show_seconds(count: int) -> str:
    """Return a time as seconds, or from two minutes on as minutes, and from two hours on as hours."""
    unit, seconds = next(
        (unit, seconds) for unit, seconds in (("h", 3600), ("min", 60), ("s", 0)) if count >= 2 * seconds
    )
    return f"{count // max(seconds, 1)} {unit}"


def show_bytes(count: int) -> str:
    """Return a size in GB from one GB on, else in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns as wide as their widest cell, two spaces apart; the last column is not padded.

    Cells may hold text of other nodes, so none of them can control the terminal.
    """
    from common.text_safety import one_line

    lines = [[one_line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
