"""`exobus bus sub`: prints messages of the bus as they pass, one line each."""

from __future__ import annotations

import json
import time
from typing import Any

import msgpack
import msgspec
import typer

from bus.client import BusClient
from bus.wire import Envelope
from cli.exit_codes import USAGE, leave
from cli.patterns import check, literal_prefix, matches
from common.text_safety import one_line

WIDEST_FIELD = 60
MOST_ITEMS = 4096


async def run(bus: BusClient, pattern: str, count: int, *, as_json: bool) -> None:
    """Print what matches; after `count` messages, end (0: never)."""
    try:
        check(pattern)
    except ValueError as error:
        leave(str(error), USAGE)
    bus.subscribe(literal_prefix(pattern))
    seen = 0
    async for envelope in bus.deliveries():
        if not envelope.is_fact or not matches(pattern, str(envelope.to)):
            continue
        typer.echo(json.dumps(as_object(envelope)) if as_json else as_line(envelope))
        seen += 1
        if seen == count:
            return


def fields_of(envelope: Envelope) -> Any:
    """A message's fields; of a kind that is not known here, whatever came."""
    if envelope.message is None:
        return _unknown(envelope.body)
    fields = msgspec.to_builtins(envelope.message)
    fields.pop("kind", None)
    return fields


def _unknown(body: bytes) -> Any:
    """Decoded within bounds, as far as JSON can show it, or a sentence about bytes that are not to be decoded."""
    try:
        value = msgpack.unpackb(body, max_array_len=MOST_ITEMS, max_map_len=MOST_ITEMS)
        return json.loads(json.dumps(value, default=repr))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        return f"{len(body)} bytes that cannot be read ({type(error).__name__})"


def as_object(envelope: Envelope) -> dict[str, Any]:
    """For programs: the topic, the header and the fields."""
    return {"topic": str(envelope.to), "header": msgspec.to_builtins(envelope.header), "body": fields_of(envelope)}


def as_line(envelope: Envelope) -> str:
    """For people: when, who, what, and the fields cut short."""
    header = envelope.header
    moment = time.strftime("%H:%M:%S", time.localtime(header.time)) + f".{int(header.time % 1 * 1000):03d}"
    fields = fields_of(envelope)
    pairs = fields.items() if isinstance(fields, dict) else [("body", fields)]
    brief = "  ".join(f"{name}={_brief(value)}" for name, value in pairs)
    return one_line(f"{moment}  {header.sender:<26}  {envelope.to!s:<18}  {brief}".rstrip())


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= WIDEST_FIELD else text[: WIDEST_FIELD - 1] + "…"
