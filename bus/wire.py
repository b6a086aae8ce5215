"""Messages to frames and back: a pure pair of functions. No sockets here.

Frames: `[address or topic, header, body, *buffers]`. An address holds a slash, a topic never does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bus.messages import MESSAGES, VERSION, Header, Message, kind_of

MAX_FRAMES = 8
MAX_HEADER_BYTES = 1024
MAX_BODY_BYTES = 1 << 20

_encoder = msgspec.msgpack.Encoder()
_headers = msgspec.msgpack.Decoder(Header)
_decoders = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in MESSAGES.items()}
_anything = msgspec.msgpack.Decoder()


class WireError(Exception):
    """Frames that are not a message of ours; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message as it came. `message` is None for a kind that we do not know; `body` then holds its fields."""

    to: str
    header: Header
    message: Message | None
    body: Any = None
    buffers: tuple[bytes, ...] = ()

    @property
    def node(self) -> str:
        """The node that sent it."""
        return self.header.sender.partition("/")[0]


def new_header(message: Message, sender: str, *, sequence: int = 0, cause: str = "", life: int = 0) -> Header:
    """A header for a message that goes out now; `bus.sequences` numbers them."""
    return Header(VERSION, kind_of(type(message)), os.urandom(8).hex(), sender, sequence, cause, time.time(), life)


def encode(to: str, header: Header, message: Message, buffers: Sequence[bytes] = ()) -> list[bytes]:
    """The frames of a message. `to` is an address (`node/actor`) for work, the kind for a fact."""
    return [to.encode(), _encoder.encode(header), _encoder.encode(message), *buffers]


def decode_header(frames: Sequence[bytes]) -> Header:
    """Only the header, for those who pass frames on. Raises WireError."""
    if not 3 <= len(frames) <= MAX_FRAMES:
        raise WireError("frames", f"{len(frames)} of them")
    if len(frames[1]) > MAX_HEADER_BYTES or len(frames[2]) > MAX_BODY_BYTES:
        raise WireError("size", f"header {len(frames[1])}, body {len(frames[2])} bytes")
    try:
        header = _headers.decode(frames[1])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError("header", str(error)) from None
    if header.version != VERSION:
        raise WireError("version", f"we speak {VERSION}, {header.sender} speaks {header.version}")
    return header


def decode(frames: Sequence[bytes]) -> Envelope:
    """Frames to an envelope. An unknown kind is tolerated, extra fields too. Raises WireError."""
    header = decode_header(frames)
    decoder = _decoders.get(header.kind)
    try:
        to = frames[0].decode()
        body = None if decoder else _anything.decode(frames[2])
        message = decoder.decode(frames[2]) if decoder else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("body", str(error)) from None
    return Envelope(to, header, message, body, tuple(frames[3:]))
