"""`exobus bus sub`: prints messages of the bus as they pass, one line each."""

from __future__ import annotations

import json
import shutil
import sys
import time
from difflib import get_close_matches
from typing import Any

import msgpack
import msgspec
import typer

from bus import messages
from bus.client import BusClient
from bus.wire import Envelope
from cli.bus.patterns import TAP, check_pattern, literal_prefix, matches
from cli.options import USAGE, leave
from common.text_safety import one_line

WIDEST_FIELD = 60
MAX_ITEMS = 4096  # of an array or a map in a message of an unknown kind


async def run(bus: BusClient, node: str, pattern: str, count: int, *, as_json: bool) -> None:
    """Print the messages that match a pattern, and end after `count` of them (0: never).

    A pattern that matches no known kind is reported, but may match a kind that is not known here.
    """
    try:
        check_pattern(pattern)
    except ValueError as error:
        leave(str(error), USAGE)
    if not any(matches(pattern, kind) for kind in known_kinds()):
        typer.echo(f"listening on {node}, but no known kind matches {pattern!r}; {_nearest(pattern)}", err=True)
    bus.subscribe(literal_prefix(pattern))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    seen = 0
    async for envelope in bus.deliveries():
        if not envelope.is_fact or not matches(pattern, str(envelope.to)):
            continue
        typer.echo(json.dumps(as_object(envelope)) if as_json else as_line(envelope)[:width])
        seen += 1
        if seen == count:
            return


def known_kinds() -> list[str]:
    """Return the topics of all messages of the protocol: facts by their kind, other messages under `tap.`."""
    facts = [kind for kind, message in messages.MESSAGES.items() if issubclass(message, messages.Fact)]
    return sorted([*facts, *(TAP + kind for kind in messages.MESSAGES if kind not in facts)])


def _nearest(pattern: str) -> str:
    """Return a sentence with the kinds that a pattern may mean: those that contain it, or have a similar word."""
    kinds = known_kinds()
    words = [word for word in pattern.split(".") if word not in ("*", ">", "tap")]
    found = [kind for kind in kinds if ".".join(words) in kind] if words else []
    found = found or [kind for kind in kinds if any(get_close_matches(word, kind.split("."), 1) for word in words)]
    return f"kinds: {', '.join(found or [kind for kind in kinds if not kind.startswith(TAP)])}"


def fields_of(envelope: Envelope) -> Any:
    """Return the fields of a message; of a kind that is not known here, the decoded body."""
    if envelope.message is None:
        return _unknown(envelope.body)
    fields = msgspec.to_builtins(envelope.message)
    fields.pop("kind", None)
    return fields


def _unknown(body: bytes) -> Any:
    """Decode a body within bounds, as far as JSON can show it; if that fails, return a sentence about its bytes."""
    try:
        value = msgpack.unpackb(body, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS)
        return json.loads(json.dumps(value, default=repr))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        return f"{len(body)} bytes that cannot be read ({type(error).__name__})"


def as_object(envelope: Envelope) -> dict[str, Any]:
    """Return a message as an object for programs: its topic, header and fields."""
    return {"topic": str(envelope.to), "header": msgspec.to_builtins(envelope.header), "body": fields_of(envelope)}


def as_line(envelope: Envelope) -> str:
    """Return a message as a line for people: its time, sender, topic and shortened fields."""
    header = envelope.header
    moment = time.strftime("%H:%M:%S", time.localtime(header.time)) + f".{int(header.time % 1 * 1000):03d}"
    fields = fields_of(envelope)
    pairs = fields.items() if isinstance(fields, dict) else [("body", fields)]
    brief = "  ".join(f"{name}={_brief(value)}" for name, value in pairs)
    return one_line(f"{moment}  {header.sender:<26}  {envelope.to!s:<18}  {brief}".rstrip())


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= WIDEST_FIELD else text[: WIDEST_FIELD - 1] + "…"
