"""Messages to frames and back: a pure pair of functions. No sockets here.

Frames: `[address or topic, header, body]`. An address holds a slash, a topic never does. Sizes are looked at before
anything is decoded, and a body of a known kind is decoded within the bounds of `common.limits`; one of an unknown kind
is not decoded at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import inspect

from bus.messages import MESSAGES, VERSION, Header, Message, kind_of
from common.limits import MAX_SENTENCE, UNREADABLE, cut

FRAMES = 3
MAX_ADDRESS_BYTES = 256
MAX_HEADER_BYTES = 1024
MAX_BODY_BYTES = 256 << 10


_encoder = msgspec.msgpack.Encoder()
_headers = msgspec.msgpack.Decoder(Header)
_decoders = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in MESSAGES.items()}


class WireError(Exception):
    """Frames that are not a message of ours; `reason` is a short stable word for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message as it came. `message` is None for a kind that we do not know; `body` then holds its bytes."""

    to: str
    header: Header
    message: Message | None
    body: bytes = b""

    @property
    def node(self) -> str:
        """The node that sent it."""
        return self.header.sender.partition("/")[0]


def new_header(message: Message, sender: str, *, sequence: int = 0, cause: str = "", life: int = 0) -> Header:
    """A header for a message that goes out now; `bus.sequencing` numbers them."""
    return Header(VERSION, kind_of(type(message)), os.urandom(8).hex(), sender, sequence, cause, time.time(), life)


def encode(to: str, header: Header, message: Message) -> list[bytes]:
    """The frames of a message. `to` is an address (`node/actor`) for work, the kind for a fact.

    A sentence that is too long is cut. Raises WireError for whatever else no receiver would take.
    """
    try:
        frames = [to.encode(), _encoder.encode(header), _encoder.encode(_with_short_sentences(message))]
        _check_sizes(frames)
        _decoders[kind_of(type(message))].decode(frames[2])
    except (UnicodeEncodeError, *UNREADABLE) as error:
        raise WireError("body", f"{header.kind} cannot be sent: {error}") from None
    return frames


def decode_header(frames: Sequence[bytes]) -> Header:
    """Only the header, for those who pass frames on. Raises WireError."""
    if len(frames) != FRAMES:
        raise WireError("frames", f"{len(frames)} of them")
    _check_sizes(frames)
    try:
        header = _headers.decode(frames[1])
    except UNREADABLE as error:
        raise WireError("header", str(error)) from None
    texts = header.sender + header.kind + header.id + header.cause
    if not (texts.isascii() and texts.isprintable()):  # answers are addressed by them, logs and terminals show them
        raise WireError("header", "it has other characters than printable ASCII")
    if header.version != VERSION:
        raise WireError("version", f"we speak {VERSION}, {header.sender} speaks {header.version}")
    return header


def decode(frames: Sequence[bytes]) -> Envelope:
    """Frames to an envelope. An unknown kind is tolerated, extra fields too. Raises WireError."""
    header = decode_header(frames)
    decoder = _decoders.get(header.kind)
    try:
        to = frames[0].decode()
    except UnicodeDecodeError as error:
        raise WireError("address", str(error)) from None
    try:
        message = decoder.decode(frames[2]) if decoder else None
    except UNREADABLE as error:
        raise WireError("body", str(error)) from None
    return Envelope(to, header, message, b"" if decoder else frames[2])


def _check_sizes(frames: Sequence[bytes]) -> None:
    address, header, body = map(len, frames)
    if address > MAX_ADDRESS_BYTES or header > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
        raise WireError("size", f"address, header and body have {address}, {header} and {body} bytes")


def _with_short_sentences(message: Message) -> Message:
    long = [name for name in _SENTENCES[type(message)] if len(getattr(message, name)) > MAX_SENTENCE]
    short = {name: cut(getattr(message, name), MAX_SENTENCE) for name in long}
    return msgspec.structs.replace(message, **short) if short else message


def _sentences(cls: type[Message]) -> tuple[str, ...]:
    described = inspect.type_info(cls)
    assert isinstance(described, inspect.StructType), f"{cls.__name__} is no struct"
    marks = ((field.name, getattr(field.type, "extra", None) or {}) for field in described.fields)
    return tuple(name for name, mark in marks if mark.get("cut"))


_SENTENCES = {cls: _sentences(cls) for cls in MESSAGES.values()}
