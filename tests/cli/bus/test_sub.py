"""How `exobus bus sub` shows messages, unknown and hostile ones among them."""

from __future__ import annotations

import json
import struct

import msgpack
import msgspec
import pytest

from bus.messages import MESSAGES, VERSION, Header, Status
from bus.wire import Envelope
from cli.bus.sub import as_line, as_object, fields_of, known_kinds


def unknown(body: bytes, sender: str = "node/actor") -> Envelope:
    return Envelope("new.kind", Header(VERSION, "new.kind", "id", sender, 1), None, body)


def test_unknown_kind_is_shown_with_its_fields() -> None:
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
def test_unreadable_body_is_reported(body: bytes) -> None:
    line = as_line(unknown(body))
    assert f"{len(body)} bytes that cannot be read" in line
    json.dumps(as_object(unknown(body)))


@pytest.mark.parametrize(
    "body", [b"\xc7\x00\x05", b"\xd6\xff\x00\x00\x00\x01", b"\xc4\x02\xff\xfe", b"\xca\x7f\xc0\0\0"]
)
def test_values_that_json_lacks_are_shown(body: bytes) -> None:
    assert "body=" in as_line(unknown(body))
    json.dumps(as_object(unknown(body)))


def test_foreign_text_does_not_control_the_terminal() -> None:
    text = "\x1b[2J\x9b2J\u202e\r\n"
    for envelope in (
        unknown(msgspec.msgpack.encode({text: text})),
        unknown(msgspec.msgpack.encode([text]), sender=f"node/{text}"),
        Envelope("status", Header(VERSION, "status", "id", "node/actor"), Status("m", text)),
    ):
        assert as_line(envelope).isprintable()


def test_known_kinds_are_facts_and_tapped_work() -> None:
    kinds = known_kinds()
    assert {"status", "session.token", "tap.engine.load", "tap.request.failed"} <= set(kinds)
    assert not {"engine.load", "tap.status"} & set(kinds)
    assert len(kinds) == len(MESSAGES)
