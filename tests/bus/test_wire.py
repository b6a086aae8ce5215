"""Frames to messages and back, and frames that are not valid messages."""

from __future__ import annotations

import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from bus.address import Address
from bus.messages import (
    MESSAGES,
    VERSION,
    Header,
    HubState,
    Log,
    PeerDown,
    RequestDone,
    RequestFailed,
    ShardLoad,
    TopologyState,
    kind_of,
)
from bus.wire import (
    MAX_ADDRESS_BYTES,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    Envelope,
    WireError,
    decode,
    decode_header,
    encode,
    new_header,
)
from cluster.failures import FailureCode
from cluster.shard import Shard
from cluster.topology import MAX_LINKS, Link, NodeRecord, RecordNumber, Topology
from common.limits import MAX_NAME, MAX_SENTENCE
from tests.support.network.messages import example, scalars

LOG = Log("WARNING", "here", "text")
MESSAGE_PACK_LENGTHS = {inspect.VarTupleType: b"\xdd", inspect.DictType: b"\xdf", inspect.StrType: b"\xdb"}


def frames(**changes: object) -> list[bytes]:
    return encode("log", msgspec.structs.replace(new_header(LOG, "node/actor", sequence=3), **changes), LOG)


def frames_of(envelope: Envelope) -> list[bytes]:
    return encode("log", envelope.header, LOG)[1:]


def with_body(kind: str, body: bytes) -> list[bytes]:
    return [b"node/actor", frames(kind=kind)[1], body]


def reason_of(parts: list[bytes]) -> str:
    with pytest.raises(WireError) as refused:
        decode(parts)
    return refused.value.reason


def test_new_header_has_a_new_id() -> None:
    one, other = new_header(LOG, "node/actor", cause="c"), new_header(LOG, "node/actor")
    assert (one.version, one.kind, one.sender, one.cause) == (VERSION, "log", "node/actor", "c")
    assert one.id != other.id
    assert len(one.id) == 16


def test_envelope_names_the_sending_node() -> None:
    assert decode(frames()).node == "node"


def test_address_makes_work_and_topic_makes_a_fact() -> None:
    work, fact = decode([b"node/actor", *frames()[1:]]), decode(frames())
    assert (work.to, work.is_fact) == (Address("node", "actor"), False)
    assert (fact.to, fact.is_fact) == ("log", True)
    assert encode(Address("node", "actor"), work.header, LOG) == [b"node/actor", *frames_of(work)]


def test_body_of_unknown_kind_is_kept() -> None:
    for body in (msgspec.msgpack.encode({"kind": "x", "new": [1]}), b"", b"\xc1", b"\x91" * 100_000):
        envelope = decode(with_body("from.the.future", body))
        assert (envelope.message, envelope.header.kind, envelope.body) == (None, "from.the.future", body)


def test_additional_header_fields_are_tolerated() -> None:
    parts = frames()
    parts[1] = msgspec.msgpack.encode(msgspec.msgpack.decode(parts[1]) | {"later": 1})
    assert decode(parts).message == LOG


@pytest.mark.parametrize("version", [0, 1, 2, 255])
def test_another_version_is_refused(version: int) -> None:
    assert reason_of(frames(version=version)) == "version"
    with pytest.raises(WireError, match=f"node/actor has version {version}"):
        decode_header(frames(version=version))


@pytest.mark.parametrize("count", [0, 1, 2, 4, 1000])
def test_wrong_number_of_frames_is_refused(count: int) -> None:
    assert reason_of((frames() + [b""] * 1000)[:count]) == "frames"


def test_sizes_are_checked_first() -> None:
    topic, head, body = frames()
    assert reason_of([topic, head + b"\0" * MAX_HEADER_BYTES, body]) == "size"
    assert reason_of([topic, head, b"\xc0" * (MAX_BODY_BYTES + 1)]) == "size"
    assert reason_of([b"\xff" * (MAX_ADDRESS_BYTES + 1), head, body]) == "size"


@pytest.mark.parametrize(
    ("position", "content", "reason"),
    [
        (0, b"\xff\xfe", "address"),
        (1, b"", "header"),
        (1, msgspec.msgpack.encode([1, 2]), "header"),
        (1, msgspec.msgpack.encode({"version": "1", "kind": "log", "id": "", "sender": ""}), "header"),
        (1, b"\xff\xfe", "header"),
        (2, b"", "body"),
        (2, b"\x91" * 2000, "body"),
        (2, msgspec.msgpack.encode({"level": 3}), "body"),
        (2, msgspec.msgpack.encode({"kind": "peer.down", "level": "", "logger": "", "text": ""}), "body"),
        (2, msgspec.msgpack.encode({"level": "", "logger": "", "text": "\x01"}).replace(b"\x01", b"\xff"), "body"),
        (2, msgspec.msgpack.encode({"level": "", "logger": "", "text": "", "x": 0})[:-2] + b"\x91" * 200_000, "body"),
    ],
)
def test_undecodable_frame_is_refused(position: int, content: bytes, reason: str) -> None:
    parts = frames()
    parts[position] = content
    assert reason_of(parts) == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": -1},
        {"sequence": 1 << 63},
        {"life": -1},
        {"time": float("nan")},
        {"time": float("inf")},
        {"time": 1e30},
        {"sender": "n" * (MAX_NAME + 1)},
        {"sender": "node/actor\nERROR all is lost"},
        {"sender": "node/\x1b[2J"},
        {"kind": "a\rb"},
        {"id": "\x9b2J"},
        {"cause": "\u202e"},
        {"sender": "node/é"},
        {"version": 2, "sender": "node/\x1b[2J"},
    ],
)
def test_header_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    assert reason_of(frames(**changes)) == "header"


@pytest.mark.parametrize("end", [b"\0", b"\xc0", b"\x80", b"x" * 1000])
def test_trailing_bytes_are_refused(end: bytes) -> None:
    topic, head, body = frames()
    assert reason_of([topic, head, body + end]) == "body"
    assert reason_of([topic, head + end, body]) in ("header", "size")


@pytest.mark.parametrize(
    "shard",
    [(3, 2, 4), (0, 0, 4), (0, 5, 4), (-1, 2, 4), (0, 1, 1 << 63)],
)
def test_invalid_layer_range_is_refused(shard: tuple[int, int, int]) -> None:
    fields = dict(zip(("start_layer", "end_layer", "n_layers"), shard, strict=True))
    body = {
        "kind": "shard.load",
        "instance_id": "i",
        "epoch": 1,
        "shard": {"model_id": "m", **fields},
        "requested": {"incarnation": 1, "sequence": 1},
    }
    assert reason_of(with_body("shard.load", msgspec.msgpack.encode(body))) == "body"


@pytest.mark.parametrize("epoch", [-1, 1 << 63, (1 << 64) - 1, 1.5, float("nan")])
def test_epoch_out_of_bounds_is_refused(epoch: float) -> None:
    body = msgspec.to_builtins(ShardLoad("i", 1, Shard("m", 0, 1, 1), RecordNumber(1, 1))) | {"epoch": epoch}
    assert reason_of(with_body("shard.load", msgspec.msgpack.encode(body))) == "body"


@pytest.mark.parametrize("name", ["a\n", "\na", "a\x1b[2J", "\x9b2J", "a\u2028b", "\u202eab", "\0"])
def test_control_characters_in_names_are_refused(name: str) -> None:
    body = msgspec.to_builtins(example(PeerDown)) | {"node_id": name}
    assert reason_of(with_body("peer.down", msgspec.msgpack.encode(body))) == "body"


LENGTHS = [
    (kind, path.split(".")[1:], shape)
    for kind, cls in MESSAGES.items()
    for path, shape in scalars(inspect.type_info(cls), kind.replace(".", "-"))
    if type(shape) in MESSAGE_PACK_LENGTHS and path.count(".") == 1 and not path.endswith(("[]", " key", " value"))
]


@pytest.mark.parametrize("claimed", [1 << 20, (1 << 32) - 1])
def test_claimed_length_takes_no_memory(claimed: int) -> None:
    assert {type(shape) for _, _, shape in LENGTHS} == set(MESSAGE_PACK_LENGTHS)
    for kind, (name,), shape in LENGTHS:
        claim = MESSAGE_PACK_LENGTHS[type(shape)] + struct.pack(">I", claimed)
        body = b"\x81" + msgspec.msgpack.encode(name) + claim
        tracemalloc.start()
        assert reason_of(with_body(kind, body)) == "body"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 10, f"{kind} {name}"


def test_many_small_items_take_little_memory() -> None:
    floods = {
        "topology.state": {"nodes": [{}] * 80_000, "version": 0},
        "hub.state": {"subscriptions": [""] * 250_000},
        "members.state": {"linked": [""] * 250_000},
        "instance.ready": {"instance": {"stages": [{}] * 200_000}},
        "log": {"unknown": [[]] * 250_000},
    }
    for kind, fields in floods.items():
        parts = with_body(kind, msgspec.msgpack.encode(fields))
        tracemalloc.start()
        assert reason_of(parts) == "body", kind
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < len(parts[2]), kind


def test_oversized_message_is_not_sent() -> None:
    nodes = tuple(NodeRecord(f"{n:016x}", "x" * 100, 1, 1) for n in range(1024))
    state = TopologyState(Topology(1, nodes))
    with pytest.raises(WireError, match="size: address, header and body have") as refused:
        encode("node/actor", new_header(state, "node/actor"), state)
    assert refused.value.reason == "size"


@pytest.mark.parametrize(
    "message",
    [
        HubState("n" * (MAX_NAME + 1), "", ""),
        HubState("n", "", "", counters={"lost": -1}),
        HubState("\ud800", "", ""),
        HubState("n", "", "", counters={"lost": 1 << 70}),
    ],
)
def test_value_out_of_bounds_is_not_sent(message: HubState) -> None:
    with pytest.raises(WireError, match=r"hub\.state cannot be sent") as refused:
        encode("node/actor", new_header(message, "node/actor"), message)
    assert refused.value.reason == "body"


def test_long_sentence_is_cut() -> None:
    failed = RequestFailed(FailureCode.BUSY, "é" * (MAX_SENTENCE + 1))
    came = decode(encode("node/actor", new_header(failed, "node/actor"), failed)).message
    assert came == RequestFailed(FailureCode.BUSY, "é" * (MAX_SENTENCE - 1) + "…")
    whole = RequestFailed(FailureCode.BUSY, "é" * MAX_SENTENCE)
    assert decode(encode("node/actor", new_header(whole, "node/actor"), whole)).message == whole


def test_topology_of_100_nodes_fits() -> None:
    nodes = [f"{n:016x}" for n in range(100)]
    topology = Topology()
    for node in nodes:
        topology = topology.with_node(
            NodeRecord(node, f"name of {node}", 1 << 60, 1 << 20, api="http://[fe80::1]:52415")
        )
    for link in (Link(source, target, "bus", 1.25, 940.0) for source in nodes for target in nodes if source != target):
        topology = topology.with_link(link)
    assert len(topology.links) == MAX_LINKS
    state = TopologyState(topology)
    assert decode(encode("node/actor", new_header(state, "node/actor"), state)).message == state


@settings(max_examples=1000)
@given(st.lists(st.binary(max_size=64), max_size=5))
def test_random_frames_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(parts)


@settings(max_examples=1000)
@given(st.data(), st.sampled_from(sorted(MESSAGES)))
def test_damaged_messages_decode_or_are_refused(data: st.DataObject, kind: str) -> None:
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


def test_kind_is_the_tag_of_the_class() -> None:
    assert kind_of(PeerDown) == "peer.down"
    assert kind_of(RequestDone) == "request.done"
