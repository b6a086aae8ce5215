"""Messages to frames and back.

Frames: `[address or topic, header, body]`. An address holds a slash, a topic never does. Sizes are checked before
anything is decoded. The body of a known kind is decoded within the bounds of `common.limits`; the body of an unknown
kind is not decoded at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import inspect

from bus.address import Address
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
    """Frames that are not a valid message. `reason` is a short stable text for counters."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Envelope:
    """A received message, and where it was sent.

    `to` is the address of work or the topic of a fact. `message` is None for an unknown kind; `body` then holds its
    bytes.
    """

    to: Address | str
    header: Header
    message: Message | None
    body: bytes = b""

    @property
    def is_fact(self) -> bool:
        """Whether it was published under a topic, not sent to an address."""
        return isinstance(self.to, str)

    @property
    def node(self) -> str:
        """The id of the node that sent it."""
        return Address.parse(self.header.sender).node


def new_header(message: Message, sender: str, *, sequence: int = 0, cause: str = "", life: int = 0) -> Header:
    """Return a header with a new id and the present time; `bus.sequencing` assigns sequence numbers."""
    return Header(VERSION, kind_of(type(message)), os.urandom(8).hex(), sender, sequence, cause, time.time(), life)


def encode(to: Address | str, header: Header, message: Message) -> list[bytes]:
    """Return the frames of a message to an address, or of a fact under its topic.

    A sentence that is too long is cut. Raises WireError if a receiver would not accept the message otherwise.
    """
    try:
        frames = [str(to).encode(), _encoder.encode(header), _encoder.encode(_with_short_sentences(message))]
        _check_sizes(frames)
        # msgspec checks bounds only when it decodes, and its own check is the only one that cannot differ from the
        # receiver's. It takes 1 of the 4 µs for a token, and 50 µs for the record of a node with two instances.
        _decoders[kind_of(type(message))].decode(frames[2])
    except (UnicodeEncodeError, *UNREADABLE) as error:
        raise WireError("body", f"{header.kind} cannot be sent: {error}") from None
    return frames


def decode_header(frames: Sequence[bytes]) -> Header:
    """Decode the header only, to pass frames on. Raises WireError."""
    if len(frames) != FRAMES:
        raise WireError("frames", f"{len(frames)} of them")
    _check_sizes(frames)
    try:
        header = _headers.decode(frames[1])
    except UNREADABLE as error:
        raise WireError("header", str(error)) from None
    # Replies are addressed by these texts, and logs and terminals show them.
    texts = header.sender + header.kind + header.id + header.cause
    if not (texts.isascii() and texts.isprintable()):
        raise WireError("header", "it has other characters than printable ASCII")
    if header.version != VERSION:
        raise WireError("version", f"{header.sender} has version {header.version}, this node has {VERSION}")
    return header


def decode_to(frames: Sequence[bytes]) -> Address | str:
    """Decode the first frame: the address of work, or the topic of a fact. Raises WireError."""
    try:
        to = frames[0].decode()
    except UnicodeDecodeError as error:
        raise WireError("address", str(error)) from None
    return Address.parse(to) if "/" in to else to


def decode(frames: Sequence[bytes]) -> Envelope:
    """Decode frames. An unknown kind is tolerated, and so are additional fields. Raises WireError."""
    header = decode_header(frames)
    to = decode_to(frames)
    decoder = _decoders.get(header.kind)
    if decoder is None:
        return Envelope(to, header, None, frames[2])
    try:
        return Envelope(to, header, decoder.decode(frames[2]))
    except UNREADABLE as error:
        raise WireError("body", str(error)) from None


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
