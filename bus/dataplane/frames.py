"""The data plane's frame: a fixed 64-byte header, and its payload behind it. Pure functions; no sockets here.

    offset  0  magic        2s   b"xb"
            2  version      u8
            3  reserved     u8   0
            4  sequence     u32  counts the frames of one sender to one receiver, from 1
            8  epoch        u64  of the instance; a stage refuses another
           16  session      u64  random, chosen by the gateway
           24  position     u32  of the first row or token
           28  rows         u32  rows of hidden state, or tokens, in this frame
           32  width        u16  values a row (0 for tokens)
           34  flags        u16  see Flag
           36  dtype        u8   see DTYPES
           37  stage        u8   index of the sending stage; 255: a gateway
           38  rest         u16  how many more frames of the same micro-batch follow
           40  trace        u64  W3C trace id, low half
           48  sent_ns      u64  the sender's monotonic clock
           56  compute_ns   u64  what this step has cost in engines so far, all stages together
All little-endian.
"""

from __future__ import annotations

import struct
import time
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = b"xb"
FRAME_VERSION = 1
HEADER_BYTES = 64
GATEWAY_STAGE = 255
FRAGMENT_BYTES = 256 << 10  # a heartbeat cuts a slow link in the middle of a bigger message

_layout = struct.Struct("<2sBxIQQIIHHBBHQQQ")
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
    """What a frame is, as bits. One without OPEN, CLOSE, TOKEN, PLACE, THROUGH and KEEP carries hidden states.

    Plain integers: every hop tests them several times, and an enum's operators are Python functions.
    """

    OPEN: Final = 1  # payload: MessagePack of an Opening
    CLOSE: Final = 2  # free the session's slot
    TOKEN: Final = 4  # payload: token ids; to the first stage, drafts of what may follow come after the token
    ROLLBACK: Final = 8  # forget positions from `position` on: drafts that did not come true
    MORE: Final = 16  # the next frame of this session continues the same chunk
    LAST: Final = 32  # the last chunk of a prompt, or a decode step: it is sampled
    FINISHED: Final = 64  # on a token: no further one comes
    FAILED: Final = 128  # to the gateway, payload: MessagePack of a Failure; the session is over
    PLACE: Final = 256  # to the gateway, payload: int32 (place in the queue from 1, or 0 once in; prompt tokens known)
    THROUGH: Final = 512  # to the first stage: a prompt chunk that ended at `position` is through the ring
    KEEP: Final = 1024  # from the first stage on, payload: MessagePack of a Keeping


class FrameError(Exception):
    """Bytes that are no frame of ours; `reason` is a short stable word for counting."""

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
    trace: int = 0
    sent_ns: int = 0
    compute_ns: int = 0
    rest: int = 0

    def pack(self, payload: bytes = b"") -> bytes:
        """The 64 bytes, with the payload behind them."""
        return _layout.pack(
            MAGIC, FRAME_VERSION, self.sequence, self.epoch, self.session, self.position, self.rows,
            self.width, self.flags, self.dtype, self.stage, self.rest, self.trace, self.sent_ns, self.compute_ns,
        ) + payload  # fmt: skip


def unpack(message: bytes) -> tuple[Frame, npt.NDArray[np.generic]]:
    """A frame's header and its payload as a read-only array: (rows, width), or (rows,) where width is 0.

    Raises FrameError unless every field agrees with the bytes that came.
    """
    if len(message) < HEADER_BYTES:
        raise FrameError("header size")
    magic, version, sequence, epoch, session, position, rows, width, flags, dtype, stage, rest, trace, sent, spent = (
        _layout.unpack_from(message)
    )  # fmt: skip
    if magic != MAGIC:
        raise FrameError("magic")
    if version != FRAME_VERSION:
        raise FrameError("version")
    kind = DTYPES.get(dtype)
    if kind is None:
        raise FrameError("dtype")
    if rows * max(width, 1) * kind.itemsize != len(message) - HEADER_BYTES:
        raise FrameError("payload size")
    array: npt.NDArray[np.generic] = np.frombuffer(message, kind, offset=HEADER_BYTES)
    frame = Frame(flags, epoch, session, position, rows, width, dtype, sequence, stage, trace, sent, spent, rest)
    return frame, array.reshape(rows, width) if width else array


def pack_part(frame: Frame, flags: int, position: int, part: npt.NDArray[np.generic], sequence: int) -> bytes:
    """A frame that carries `part`, (rows, width) or (values,), and is sent now.

    One message part with a copy of the payload: a second part costs more than copying 256 KiB.
    """
    rows, width = part.shape if part.ndim == 2 else (len(part), 0)
    header = _layout.pack(
        MAGIC, FRAME_VERSION, sequence, frame.epoch, frame.session, position, rows,
        width, flags, dtype_code(part), frame.stage, frame.rest, frame.trace, time.monotonic_ns(), frame.compute_ns,
    )  # fmt: skip
    return header + part.tobytes()


def dtype_code(array: npt.NDArray[np.generic]) -> int:
    """The wire's number for an array's dtype. Raises KeyError for one that does not travel."""
    code = _codes.get(array.dtype)
    return _codes[array.dtype.newbyteorder("<")] if code is None else code
