"""How large a value inside a message may be, so that a decoder can refuse it before it takes memory. Types, no values.

They are generous: none is meant to be met. Lengths are in characters, or in items.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import DecodeError, Meta

MAX_NAME = 128
MAX_SENTENCE = 4096
MAX_DETAIL = 1024
MAX_NODES = 1024
MAX_STAGES = 256
MAX_JOIN_ENDPOINTS = 64  # in a welcome, which has to pass a join port

UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError, OverflowError, MemoryError)
"""All that msgspec raises for bytes that it cannot decode; nesting ends in a RecursionError, also in unknown fields."""

_ONE_LINE = "\\A[^\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*\\Z"
"""No control characters: names come into logs and onto terminals, where they must not pass for something else."""

Name = Annotated[str, Meta(max_length=MAX_NAME, pattern=_ONE_LINE)]
"""A name or an id: of a node, an actor, an engine, a session, a version."""
HeaderText = Annotated[str, Meta(max_length=MAX_NAME)]
"""The same in every header, and ASCII; `bus.wire` looks at all of them at once, which is quicker."""
ModelId = Annotated[str, Meta(max_length=256, pattern=_ONE_LINE)]
Endpoint = Annotated[str, Meta(max_length=256, pattern=_ONE_LINE)]
Topic = Annotated[str, Meta(max_length=256, pattern=_ONE_LINE)]
Path = Annotated[str, Meta(max_length=4096)]
Detail = Annotated[str, Meta(max_length=MAX_DETAIL)]
"""A sentence inside a value; `cut` it to `MAX_DETAIL`."""
Sentence = Annotated[str, Meta(max_length=MAX_SENTENCE, extra={"cut": True})]
"""A sentence of a message; `bus.wire` cuts it where it is longer."""
Proof = Annotated[bytes, Meta(max_length=32)]
Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Process = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Real = Annotated[float, Meta(ge=0.0, le=1e15)]
"""Seconds, milliseconds, rates: finite and not negative."""
UnixTime = Annotated[float, Meta(ge=0.0, le=253402300799.0)]
"""Seconds, up to the end of the year 9999, which is the last that a calendar can show."""


def cut(text: str, longest: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
