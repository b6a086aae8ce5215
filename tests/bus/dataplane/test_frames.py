"""The data plane's 64 bytes, and bytes that are none of it."""

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
    trace=u64,
    sent_ns=u64,
    compute_ns=u64,
    rest=st.integers(0, 2**16 - 1),
)


def payload_of(frame: Frame) -> bytes:
    count = frame.rows * max(frame.width, 1) * DTYPES[frame.dtype].itemsize
    return bytes(index % 251 for index in range(count))


@settings(max_examples=1000, deadline=None)
@given(frames)
def test_a_frame_comes_out_as_it_went_in(frame: Frame) -> None:
    payload = payload_of(frame)
    message = frame.pack(payload)
    assert len(message) == HEADER_BYTES + len(payload)
    unpacked, array = unpack(message)
    assert unpacked == frame
    assert array.tobytes() == payload
    assert array.shape == ((frame.rows, frame.width) if frame.width else (frame.rows,))
    assert not array.flags.writeable


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=120))
def test_random_bytes_are_refused_and_nothing_worse(message: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(message)


@settings(max_examples=1000, deadline=None)
@given(frames, st.integers(0, HEADER_BYTES - 1), u8, st.integers(-8, 8))
def test_damaged_frames_unpack_consistently_or_are_refused(frame: Frame, at: int, byte: int, more: int) -> None:
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


def test_the_layout_is_the_one_written_down() -> None:
    flags = Flag.TOKEN | Flag.FINISHED
    frame = Frame(flags, 3, 0x1122334455667788, 41, 1, 0, 0, 9, 1, 0xAA, 0xBB, 0xCC)
    by_hand = struct.pack("<2sBBI", b"xb", 1, 0, 9) + struct.pack("<QQ", 3, 0x1122334455667788)
    by_hand += struct.pack("<II", 41, 1) + struct.pack("<HHBBH", 0, 68, 0, 1, 0) + struct.pack("<QQQ", 0xAA, 0xBB, 0xCC)
    assert frame.pack() == by_hand


@pytest.mark.parametrize(("at", "reason"), [(0, "magic"), (2, "version"), (36, "dtype")])
def test_the_field_that_is_wrong_is_named(at: int, reason: str) -> None:
    header = bytearray(Frame(Flag.TOKEN, 1, 1, rows=1).pack())
    header[at] = 250
    with pytest.raises(FrameError, match=reason):
        unpack(bytes(header) + bytes(4))


def test_less_than_a_header_is_refused() -> None:
    with pytest.raises(FrameError, match="header size"):
        unpack(Frame(Flag.TOKEN, 1, 1).pack()[:-1])


def test_a_header_may_not_claim_more_than_came() -> None:
    message = Frame(0, 1, 1, rows=2**32 - 1, width=2**16 - 1, dtype=1).pack(bytes(16))
    with pytest.raises(FrameError, match="payload size"):
        unpack(message)


def test_every_dtype_has_a_number_and_others_do_not_travel() -> None:
    for code, dtype in DTYPES.items():
        assert dtype_code(np.zeros(1, dtype)) == code
    with pytest.raises(KeyError):
        dtype_code(np.zeros(1, np.complex64))
