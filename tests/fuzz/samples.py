"""Valid inputs of decoders to begin with: one message of each kind, and frames of the data plane."""

from __future__ import annotations

import numpy as np

from bus.dataplane.frames import DTYPES, Flag, Frame, pack_part
from bus.messages import MESSAGES, VERSION, Header, kind_of
from bus.wire import encode
from tests.support.network.messages import example


def _message(kind: str) -> tuple[bytes, bytes]:
    value = example(MESSAGES[kind])
    header = Header(VERSION, kind_of(type(value)), "0123456789abcdef", "node-a/actor", 7, "fedcba9876543210", 1.5, 3)
    _, head, body = encode("to", header, value)
    return head, body


def _frames() -> tuple[bytes, ...]:
    hidden = Frame(Flag.SAMPLE, epoch=3, session=9)
    parts = [np.ones((2, 8), dtype) for dtype in DTYPES.values()]
    return (
        hidden.pack(),
        Frame(Flag.TOKEN, epoch=3, session=9, position=4, rows=1).pack(b"\2\0\0\0"),
        *(pack_part(hidden, Flag.SAMPLE, 5, part, 1) for part in parts),
    )


MESSAGE_FRAMES: tuple[tuple[bytes, bytes], ...] = tuple(_message(kind) for kind in sorted(MESSAGES))
FRAMES = _frames()
