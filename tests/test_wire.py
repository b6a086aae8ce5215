"""Frames to messages and back, and frames that are no message of ours."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import MESSAGES, VERSION, Header, Log, PeerDown, RequestDone, kind_of
from bus.wire import (
    MAX_BODY_BYTES,
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    WireError,
    decode,
    decode_header,
    encode,
    new_header,
)
from tests.rig_bus import example

LOG = Log("WARNING", "here", "text")


def frames(**changes: object) -> list[bytes]:
    return encode("log", msgspec.structs.replace(new_header(LOG, "node/actor", sequence=3), **changes), LOG)


def reason_of(parts: list[bytes]) -> str:
    with pytest.raises(WireError) as refused:
        decode(parts)
    return refused.value.reason


def test_a_header_names_version_kind_sender_and_a_fresh_id() -> None:
    one, other = new_header(LOG, "node/actor", cause="c"), new_header(LOG, "node/actor")
    assert (one.version, one.kind, one.sender, one.cause) == (VERSION, "log", "node/actor", "c")
    assert one.id != other.id
    assert len(one.id) == 16


def test_an_envelope_knows_the_node_that_sent_it() -> None:
    assert decode(frames()).node == "node"


def test_an_unknown_kind_is_tolerated_with_its_fields() -> None:
    envelope = decode([b"n/a", frames(kind="from.the.future")[1], msgspec.msgpack.encode({"kind": "x", "new": [1]})])
    assert envelope.message is None
    assert envelope.header.kind == "from.the.future"
    assert envelope.body == {"kind": "x", "new": [1]}


def test_a_header_with_further_fields_is_tolerated() -> None:
    parts = frames()
    parts[1] = msgspec.msgpack.encode(msgspec.msgpack.decode(parts[1]) | {"later": 1})
    assert decode(parts).message == LOG


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_major_version_is_refused_by_name(version: int) -> None:
    assert reason_of(frames(version=version)) == "version"
    with pytest.raises(WireError, match=f"node/actor speaks {version}"):
        decode_header(frames(version=version))


@pytest.mark.parametrize("count", [0, 1, 2, MAX_FRAMES + 1])
def test_too_few_or_too_many_frames_are_refused(count: int) -> None:
    assert reason_of((frames() + [b""] * MAX_FRAMES)[:count]) == "frames"


def test_the_largest_number_of_frames_is_taken() -> None:
    assert len(decode((frames() + [b""] * MAX_FRAMES)[:MAX_FRAMES]).buffers) == MAX_FRAMES - 3


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    topic, head, body = frames()
    assert reason_of([topic, head + b"\0" * MAX_HEADER_BYTES, body]) == "size"
    assert reason_of([topic, head, b"\xc0" * (MAX_BODY_BYTES + 1)]) == "size"


@pytest.mark.parametrize(
    ("position", "content", "reason"),
    [
        (0, b"\xff\xfe", "body"),
        (1, b"", "header"),
        (1, msgspec.msgpack.encode([1, 2]), "header"),
        (1, msgspec.msgpack.encode({"version": "1", "kind": "log", "id": "", "sender": ""}), "header"),
        (2, b"", "body"),
        (2, msgspec.msgpack.encode({"level": 3}), "body"),
        (2, msgspec.msgpack.encode({"kind": "peer.down", "level": "", "logger": "", "text": ""}), "body"),
        (2, b"\x91" * 2000, "body"),
    ],
)
def test_what_does_not_parse_is_refused(position: int, content: bytes, reason: str) -> None:
    parts = frames()
    parts[position] = content
    assert reason_of(parts) == reason


def test_deep_nesting_in_an_unknown_kind_is_refused() -> None:
    assert reason_of([b"x", frames(kind="x")[1], b"\x91" * 100_000 + b"\xc0"]) == "body"


def test_a_shard_that_is_no_range_is_refused() -> None:
    shard = {"model_id": "m", "start_layer": 3, "end_layer": 2, "n_layers": 4}
    body = {"kind": "shard.load", "instance_id": "i", "epoch": 1, "shard": shard}
    assert reason_of([b"n/a", frames(kind="shard.load")[1], msgspec.msgpack.encode(body)]) == "body"


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=MAX_FRAMES + 2))
def test_random_frames_are_refused_and_nothing_worse(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(parts)


@settings(max_examples=1000, deadline=None)
@given(st.data(), st.sampled_from(sorted(MESSAGES)))
def test_damaged_messages_decode_or_are_refused_and_nothing_worse(data: st.DataObject, kind: str) -> None:
    message = example(MESSAGES[kind])
    parts = encode("node/actor", new_header(message, "node/actor"), message)
    which = data.draw(st.integers(0, 2))
    damaged = bytearray(parts[which])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    parts[which] = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        envelope = decode(parts)
    except WireError:
        return
    assert isinstance(envelope.header, Header)


def test_kinds_come_from_the_classes() -> None:
    assert kind_of(PeerDown) == "peer.down"
    assert kind_of(RequestDone) == "request.done"
