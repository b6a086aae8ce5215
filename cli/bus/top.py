"""`exobus bus top`: messages and bytes a second by kind, and losses, seen by gaps in the senders' sequences."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import typer

from bus.client import BusClient
from bus.wire import Envelope
from cli.text import table


@dataclass
class Traffic:
    """The messages since the last report, and those lost since the beginning, by topic."""

    messages: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    _last: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def count(self, envelope: Envelope, size: int) -> None:
        """Add a message of `size` bytes. Work is numbered by its address, so gaps in it mean nothing here."""
        topic, header = str(envelope.to), envelope.header
        self.messages[topic] += 1
        self.sizes[topic] += size
        if topic == header.kind:
            life, before = self._last.get((header.sender, topic), (0, 0))
            self.lost[topic] += max(header.sequence - before - 1, 0) if life == header.life else 0
            self._last[header.sender, topic] = (header.life, header.sequence)

    def report(self, seconds: float) -> list[dict[str, float | str]]:
        """Return the rates by topic since the last report, the busiest first, and begin the next one."""
        rows: list[dict[str, float | str]] = [
            {
                "topic": topic,
                "messages_per_s": round(count / seconds, 1),
                "kilobytes_per_s": round(self.sizes[topic] / seconds / 1000, 2),
                "lost": self.lost[topic],
            }
            for topic, count in self.messages.most_common()
        ]
        self.messages.clear()
        self.sizes.clear()
        return rows


async def run(bus: BusClient, count: int, interval: float, *, as_json: bool) -> None:
    """Report every `interval` seconds, and end after `count` reports (0: never)."""
    bus.subscribe("")
    traffic, reports = Traffic(), 0
    while not count or reports < count:
        begun = time.monotonic()
        await _count(bus, traffic, interval)
        rows = traffic.report(time.monotonic() - begun)
        reports += 1
        _print(rows, as_json=as_json)


async def _count(bus: BusClient, traffic: Traffic, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for envelope in bus.deliveries():
                if envelope.is_fact:
                    body = envelope.body if envelope.message is None else msgspec.msgpack.encode(envelope.message)
                    traffic.count(envelope, len(body))


def _print(rows: list[dict[str, float | str]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if sys.stdout.isatty():
        typer.echo("\x1b[H\x1b[2J", nl=False)
    cells = [(str(r["topic"]), f"{r['messages_per_s']}", f"{r['kilobytes_per_s']}", f"{r['lost']}") for r in rows]
    typer.echo(table(("KIND", "MSG/S", "KB/S", "LOST"), cells))
