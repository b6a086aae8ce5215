"""The data plane's frame: a fixed 64-byte header with the payload behind it.

    offset  0  magic        2s   b"xb"
            2  version      u8
            3  reserved     u8   written as 0, ignored when read
            4  sequence     u32  counts the frames from one sender to one receiver, from 1
            8  epoch        u64  of the instance; a stage refuses another
           16  session      u64  random, chosen by the gateway
           24  position     u32  of the first row or token
           28  rows         u32  rows of hidden states, or tokens, in this frame
           32  width        u16  values per row (0 for tokens)
           34  flags        u16  see Flag
           36  dtype        u8   see DTYPES
           37  stage        u8   index of the sending stage; 255: a gateway
           38  rest         u16  how many more frames of the same micro-batch follow
           40  compute_ns   u64  what this step has cost in engines so far, all stages together
           48  reserved     u64  written as 0, ignored when read
           56  reserved     u64  written as 0, ignored when read
All little-endian.

This module knows bytes. Which frames a stage or a gateway accepts, and what they do, is decided elsewhere.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = b"xb"
FRAME_VERSION = 2
HEADER_BYTES = 64
GATEWAY_STAGE = 255
FRAGMENT_BYTES = 256 << 10  # a larger message delays heartbeats on a slow link until the connection counts as dead

Payload = npt.NDArray[np.generic]
"""Rows of hidden states, (rows, width), or tokens or bytes, (rows,)."""

_layout = struct.Struct("<2sBxIQQIIHHBBHQ16x")
assert _layout.size == HEADER_BYTES, "the header is 64 bytes"

DTYPES: dict[int, np.dtype[np.generic]] = {
    0: np.dtype("<i4"),  # token ids
    1: np.dtype("<f4"),
    2: np.dtype("<f2"),
    3: np.dtype("<u2"),  # bfloat16 bits, which numpy has no name for
    4: np.dtype("u1"),  # MessagePack, or UTF-8
}
_codes = {dtype: code for code, dtype in DTYPES.items()}


class Flag:
    """What a frame is, as bits. A frame without OPEN, CLOSE, TOKEN, FAILED, QUEUE_POSITION, COMPUTED and STORE carries
    hidden states.

    Plain integers: every hop tests them several times, and an enum's operators are Python functions.
    """

    OPEN: Final = 1  # payload: MessagePack of an Opening
    CLOSE: Final = 2  # free the session's slot
    TOKEN: Final = 4  # payload: token ids; to the first stage, the newest token and drafts of what may follow
    ROLLBACK: Final = 8  # forget positions from `position` on: drafts that were rejected
    MORE: Final = 16  # the next frame of this session continues the same chunk
    SAMPLE: Final = 32  # a decode step, or the last chunk of a prompt: a token is sampled after its last row
    FINISHED: Final = 64  # on a token: it is the session's last
    FAILED: Final = 128  # to the gateway, payload: MessagePack of a SessionFailure; the session is over
    QUEUE_POSITION: Final = 256  # to the gateway, payload: int32 (place in the queue from 1, or 0; cached tokens)
    COMPUTED: Final = 512  # to the first stage: every stage has computed the prompt up to `position`
    STORE: Final = 1024  # payload: MessagePack of a CacheUpdate from the first stage on, of a CacheReport to it


class FrameError(Exception):
    """Bytes that are no valid frame, or a frame that is not accepted; `reason` is a short stable text to count by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Frame(NamedTuple):
    """A data-plane header. Fields as laid out in the module's table."""

    flags: int
    epoch: int
    session: int
    position: int = 0
    rows: int = 0
    width: int = 0
    dtype: int = 0
    sequence: int = 0
    stage: int = 0
    compute_ns: int = 0
    rest: int = 0

    def pack(self, payload: bytes = b"") -> bytes:
        """Return the header's 64 bytes with the payload behind them."""
        return _layout.pack(
            MAGIC, FRAME_VERSION, self.sequence, self.epoch, self.session, self.position, self.rows,
            self.width, self.flags, self.dtype, self.stage, self.rest, self.compute_ns,
        ) + payload  # fmt: skip


def unpack(message: bytes) -> tuple[Frame, Payload]:
    """Return a frame's header and its payload as a read-only array: (rows, width), or (rows,) if width is 0.

    Raises FrameError unless every field agrees with the bytes received.
    """
    if len(message) < HEADER_BYTES:
        raise FrameError("header size")
    magic, version, sequence, epoch, session, position, rows, width, flags, dtype, stage, rest, compute_ns = (
        _layout.unpack_from(message)
    )
    if magic != MAGIC:
        raise FrameError("magic")
    if version != FRAME_VERSION:
        raise FrameError("version")
    kind = DTYPES.get(dtype)
    if kind is None:
        raise FrameError("dtype")
    if rows * max(width, 1) * kind.itemsize != len(message) - HEADER_BYTES:
        raise FrameError("payload size")
    array: Payload = np.frombuffer(message, kind, offset=HEADER_BYTES)
    frame = Frame(flags, epoch, session, position, rows, width, dtype, sequence, stage, compute_ns, rest)
    return frame, array.reshape(rows, width) if width else array


def pack_part(frame: Frame, flags: int, position: int, part: Payload, sequence: int) -> bytes:
    """Return the message that carries `part`, (rows, width) or (values,), under `frame`'s header.

    `flags`, `position` and `sequence` replace those of `frame`. The payload is copied into the message: a second
    message part costs more than copying 256 KiB.
    """
    rows, width = part.shape if part.ndim == 2 else (len(part), 0)
    header = _layout.pack(
        MAGIC, FRAME_VERSION, sequence, frame.epoch, frame.session, position, rows,
        width, flags, dtype_code(part), frame.stage, frame.rest, frame.compute_ns,
    )  # fmt: skip
    return header + part.tobytes()


def dtype_code(array: Payload) -> int:
    """Return the wire's number for an array's dtype. Raises KeyError for a dtype that has none."""
    code = _codes.get(array.dtype)
    return _codes[array.dtype.newbyteorder("<")] if code is None else code
