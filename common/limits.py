"""Size limits of the values inside messages, as types, so that a decoder refuses a value before it takes memory.

The limits are generous: no message of a working node comes near one. Lengths are in characters or in items.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import DecodeError, Meta

MAX_NAME = 128
MAX_SENTENCE = 4096
MAX_DETAIL = 1024
MAX_NODES = 1024
MAX_STAGES = 256
MAX_JOIN_ENDPOINTS = 64  # in a `join.accept`, which has to pass the frame limit of a join port

UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError, OverflowError, MemoryError)
"""What msgspec raises for bytes that it cannot decode. Deep nesting, also in unknown fields, is a RecursionError."""

_ONE_LINE = "\\A[^\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*\\Z"
"""No control or bidirectional characters: names appear in logs and on terminals, where they must not forge text."""

Name = Annotated[str, Meta(max_length=MAX_NAME, pattern=_ONE_LINE)]
"""A name or an id: of a node, an actor, an engine, a session, a version."""
HeaderText = Annotated[str, Meta(max_length=MAX_NAME)]
"""A name in a header. `bus.wire` checks the characters of all of a header's texts at once, which is faster."""
ModelId = Annotated[str, Meta(max_length=256, pattern=_ONE_LINE)]
Endpoint = Annotated[str, Meta(max_length=256, pattern=_ONE_LINE)]
Topic = Annotated[str, Meta(max_length=256, pattern=_ONE_LINE)]
Path = Annotated[str, Meta(max_length=4096)]
Detail = Annotated[str, Meta(max_length=MAX_DETAIL)]
"""A sentence inside a value. The sender shortens it to `MAX_DETAIL` with `cut`."""
Sentence = Annotated[str, Meta(max_length=MAX_SENTENCE, extra={"cut": True})]
"""A sentence of a message. `bus.wire` shortens it if it is longer."""
Proof = Annotated[bytes, Meta(max_length=32)]
Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Process = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Real = Annotated[float, Meta(ge=0.0, le=1e15)]
"""Seconds, milliseconds or rates: finite and not negative."""
UnixTime = Annotated[float, Meta(ge=0.0, le=253402300799.0)]
"""Seconds since 1970, up to the end of the year 9999, the last one that `datetime` can represent."""


def cut(text: str, longest: int) -> str:
    """Return the text, or its beginning and an ellipsis if it has more than `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
