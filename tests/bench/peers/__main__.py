"""`python -m tests.bench.peers [--only NAME,NAME]`: compare chat servers in a table and in build/peers.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.machine import load_sentence
from tests.bench.peers.chat import CROWD, TOKENS, NoAnswer, Speed, speed
from tests.bench.peers.commands import AbsentError
from tests.bench.peers.servers import PEERS, Server

RESULTS = Path("build/peers.json")


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """The results of one server. If one is None, `why_not` is the reason in a sentence."""

    name: str
    first_ms: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_of_8: float | None = None
    resident_mb: float | None = None
    why_not: str = ""


def main() -> None:
    """Measure the wanted servers one after another."""
    parser = argparse.ArgumentParser(description="compare chat servers")
    parser.add_argument("--only", default="", help=f"some of {', '.join(PEERS)}; separated by commas")
    wanted = [name for name in parser.parse_args().only.split(",") if name] or list(PEERS)
    if unknown := set(wanted) - set(PEERS):
        parser.error(f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    print(load_sentence(), flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in wanted:
        rows.append(measure(name, PEERS[name]))
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1))
    show(rows)


def measure(name: str, start: Callable[[], AbstractContextManager[Server]]) -> Row:
    """Start one server, measure it, and end it."""
    print(f"measuring {name}", flush=True)
    try:
        with start() as server:
            return _row(name, speed(server.api, server.model), server.resident_mb())
    except (AbsentError, NoAnswer) as reason:
        print(f"{name}: {reason}", flush=True)
        return Row(name, why_not=str(reason))


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    table = Table(
        "server", "first text, ms", "tok/s", f"tok/s of {CROWD}", "MB", "", caption=f"{TOKENS} tokens, greedy"
    )
    for row in rows:
        numbers = (row.first_ms, row.tokens_per_s, row.tokens_per_s_of_8, row.resident_mb)
        table.add_row(row.name, *("–" if number is None else f"{number:.0f}" for number in numbers), row.why_not)
    Console(width=140).print(table)


def _row(name: str, measured: Speed, resident_mb: float) -> Row:
    return Row(name, measured.first_s * 1000, measured.rate, measured.crowd_rate, resident_mb, measured.why_not)


if __name__ == "__main__":
    main()
