"""What `exobus bus sub` and `top` make of messages, unknown and hostile ones among them. No sockets here."""

from __future__ import annotations

import json
import struct

import msgpack
import msgspec
import pytest

from bus.messages import VERSION, Header, LinkProbe, Status
from bus.wire import Envelope
from cli.bus_sub import as_line, as_object, fields_of
from cli.bus_top import Traffic


def unknown(body: bytes, sender: str = "node/actor") -> Envelope:
    return Envelope("new.kind", Header(VERSION, "new.kind", "id", sender, 1), None, body)


def fact(sequence: int, life: int = 1, topic: str = "status") -> Envelope:
    return Envelope(topic, Header(VERSION, "status", "id", "node/actor", sequence, life=life), Status("m", "text"))


def test_a_message_of_an_unknown_kind_is_shown_with_its_fields() -> None:
    envelope = unknown(msgspec.msgpack.encode({"kind": "new.kind", "count": 3, "list": [1, 2]}))
    assert fields_of(envelope) == {"kind": "new.kind", "count": 3, "list": [1, 2]}
    assert as_line(envelope).endswith('new.kind            kind="new.kind"  count=3  list=[1, 2]')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xc0\xc0",
        b"\xa1\xff",
        b"\x91" * 100_000,
        b"\xdd" + struct.pack(">I", (1 << 32) - 1),
        msgpack.packb([0] * 5000),
        msgpack.packb({1: 2}),
        msgpack.packb({b"key": 2}),
    ],
)
def test_a_body_that_is_not_to_be_read_is_told_as_such(body: bytes) -> None:
    line = as_line(unknown(body))
    assert f"{len(body)} bytes that cannot be read" in line
    json.dumps(as_object(unknown(body)))


@pytest.mark.parametrize(
    "body", [b"\xc7\x00\x05", b"\xd6\xff\x00\x00\x00\x01", b"\xc4\x02\xff\xfe", b"\xca\x7f\xc0\0\0"]
)
def test_values_that_json_has_not_are_shown_all_the_same(body: bytes) -> None:
    assert "body=" in as_line(unknown(body))
    json.dumps(as_object(unknown(body)))


def test_a_strangers_text_does_not_steer_the_terminal() -> None:
    text = "\x1b[2J\x9b2J\u202e\r\n"
    for envelope in (
        unknown(msgspec.msgpack.encode({text: text})),
        unknown(msgspec.msgpack.encode([text]), sender=f"node/{text}"),
        Envelope("status", Header(VERSION, "status", "id", "node/actor"), Status("m", text)),
    ):
        assert as_line(envelope).isprintable()


def test_losses_are_gaps_within_one_life_of_a_sender() -> None:
    traffic = Traffic()
    for envelope in (fact(4), fact(5), fact(8), fact(1, life=2), fact(2, life=2), fact(4, life=2)):
        traffic.count(envelope, 10)
    (row,) = traffic.report(1.0)
    assert (row["lost"], row["messages_per_s"]) == (3, 6.0)


def test_work_that_is_shown_has_no_losses() -> None:
    traffic = Traffic()
    for sequence in (1, 7, 3):
        header = Header(VERSION, "link.probe", "id", "node/actor", sequence, life=1)
        traffic.count(Envelope("tap.link.probe", header, LinkProbe()), 10)
    assert traffic.report(1.0)[0]["lost"] == 0
