"""How large a value inside a message may be, so that a decoder can refuse it before it takes memory. Types only.

They are generous: none is meant to be met. Lengths are in characters, or in items.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

LONGEST_NAME = 128
LONGEST_SENTENCE = 4096
LONGEST_DETAIL = 1024
MOST_NODES = 1024
MOST_STAGES = 256
MOST_GATES = 64  # in a welcome, which has to pass a gate

Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
"""A name or an id: of a node, an actor, an engine, a session, a version."""
ModelId = Annotated[str, Meta(max_length=256)]
Endpoint = Annotated[str, Meta(max_length=256)]
Topic = Annotated[str, Meta(max_length=256)]
Path = Annotated[str, Meta(max_length=4096)]
Detail = Annotated[str, Meta(max_length=LONGEST_DETAIL)]
"""A sentence inside a value; `cut` it to `LONGEST_DETAIL`."""
Sentence = Annotated[str, Meta(max_length=LONGEST_SENTENCE, extra={"cut": True})]
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
