"""`bus.dataplane.frames`: the 64-byte header, and bytes that are no frame."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.dataplane.frames import DTYPES, HEADER_BYTES, Flag, Frame, FrameError, dtype_code, unpack

u8, u32, u64 = st.integers(0, 2**8 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
frames = st.builds(
    Frame,
    flags=st.integers(0, 2**16 - 1),
    epoch=u64,
    session=u64,
    position=u32,
    rows=st.integers(0, 9),
    width=st.integers(0, 9),
    dtype=st.sampled_from(sorted(DTYPES)),
    sequence=u32,
    stage=u8,
    compute_ns=u64,
    rest=st.integers(0, 2**16 - 1),
)


def payload_of(frame: Frame) -> bytes:
    count = frame.rows * max(frame.width, 1) * DTYPES[frame.dtype].itemsize
    return bytes(index % 251 for index in range(count))


@settings(max_examples=1000)
@given(frames)
def test_frame_survives_packing(frame: Frame) -> None:
    payload = payload_of(frame)
    message = frame.pack(payload)
    assert len(message) == HEADER_BYTES + len(payload)
    unpacked, array = unpack(message)
    assert unpacked == frame
    assert array.tobytes() == payload
    assert array.shape == ((frame.rows, frame.width) if frame.width else (frame.rows,))
    assert not array.flags.writeable


@settings(max_examples=1000)
@given(st.binary(max_size=120))
def test_random_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(message)


@settings(max_examples=1000)
@given(frames, st.integers(0, HEADER_BYTES - 1), u8, st.integers(-8, 8))
def test_damaged_frame_is_consistent_or_refused(frame: Frame, at: int, byte: int, more: int) -> None:
    header = bytearray(frame.pack())
    header[at] = byte
    payload = payload_of(frame)
    payload = payload[:more] if more < 0 else payload + bytes(more)
    try:
        unpacked, array = unpack(bytes(header) + payload)
    except FrameError:
        return
    assert array.nbytes == len(payload)
    assert array.dtype == DTYPES[unpacked.dtype]


def test_layout_is_the_documented_one() -> None:
    flags = Flag.TOKEN | Flag.FINISHED
    frame = Frame(flags, 3, 0x1122334455667788, 41, 1, 0, 0, 9, 1, 0xCC)
    by_hand = struct.pack("<2sBBI", b"xb", 2, 0, 9) + struct.pack("<QQ", 3, 0x1122334455667788)
    by_hand += struct.pack("<II", 41, 1) + struct.pack("<HHBBH", 0, 68, 0, 1, 0) + struct.pack("<QQQ", 0xCC, 0, 0)
    assert frame.pack() == by_hand


@pytest.mark.parametrize(("at", "reason"), [(0, "magic"), (2, "version"), (36, "dtype")])
def test_error_names_the_wrong_field(at: int, reason: str) -> None:
    header = bytearray(Frame(Flag.TOKEN, 1, 1, rows=1).pack())
    header[at] = 250
    with pytest.raises(FrameError, match=reason):
        unpack(bytes(header) + bytes(4))


def test_short_header_is_refused() -> None:
    with pytest.raises(FrameError, match="header size"):
        unpack(Frame(Flag.TOKEN, 1, 1).pack()[:-1])


def test_header_with_wrong_payload_size_is_refused() -> None:
    message = Frame(0, 1, 1, rows=2**32 - 1, width=2**16 - 1, dtype=1).pack(bytes(16))
    with pytest.raises(FrameError, match="payload size"):
        unpack(message)


def test_every_dtype_has_a_number() -> None:
    for code, dtype in DTYPES.items():
        assert dtype_code(np.zeros(1, dtype)) == code
    with pytest.raises(KeyError):
        dtype_code(np.zeros(1, np.complex64))


@given(st.binary(min_size=16, max_size=16))
def test_reserved_bytes_are_ignored(reserved: bytes) -> None:
    frame = Frame(Flag.TOKEN, 1, 1, rows=1)
    message = frame.pack(bytes(4))
    assert unpack(message[:48] + reserved + message[64:])[0] == frame
