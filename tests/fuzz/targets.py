"""The functions to fuzz, which return for any bytes, and inputs to start with.

Each catches only the one exception that its decoder documents, and checks that an accepted value can be encoded and
decoded again. It returns `taken`, or a short text for the reason of the refusal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from bus.dataplane.frames import HEADER_BYTES, FrameError, unpack
from bus.messages import MESSAGES, VERSION, Header
from bus.net.endpoints import key_of, with_key
from bus.wire import Envelope, WireError, decode, encode
from cli.bus.sub import as_line, as_object
from cluster.failures import FailureCode
from cluster.join_code import JoinCodeError, new_join_code, parse_join_code
from cluster.openings import Opening, SessionFailure
from cluster.roles import Role
from cluster.sampling import SamplingParams
from common.limits import UNREADABLE
from discovery.beacon import SEAL_BYTES, Beacon, BeaconError, _mac, _named, seal, unseal
from ring.prefix_cache import CacheReport, CacheUpdate
from tests.fuzz.samples import FRAMES, MESSAGE_FRAMES

TAKEN = "taken"
KINDS = sorted(MESSAGES)
ADDRESS = b"node/actor"


@dataclass(frozen=True)
class Target:
    """A function to fuzz, and inputs that it accepts."""

    run: Callable[[bytes], str]
    seeds: tuple[bytes, ...]


def message(frames: list[bytes]) -> str:
    """Decode frames, of any number."""
    try:
        envelope = decode(frames)
    except WireError as error:
        return error.reason
    if envelope.message is not None:
        again = decode(encode(envelope.to, envelope.header, envelope.message))
        assert again == envelope, "decoding does not reverse encoding"
    return TAKEN


def _wire(data: bytes) -> str:
    """Decode a message from the length of its header, the header, and the body."""
    length = int.from_bytes(data[:2], "big")
    return message([ADDRESS, data[2 : 2 + length], data[2 + length :]])


def _body(data: bytes) -> str:
    """Decode a message from the number of a kind and a body of that kind."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    return message([ADDRESS, msgspec.msgpack.encode(Header(VERSION, kind, "id", "node/actor", 1)), data[1:]])


def _frame(data: bytes) -> str:
    """Decode a frame of the data plane."""
    try:
        frame, payload = unpack(data)
    except FrameError as error:
        return error.reason
    again = frame.pack(data[HEADER_BYTES:])  # the reserved bytes are ignored
    assert (again[4:48], again[HEADER_BYTES:]) == (data[4:48], data[HEADER_BYTES:]), (
        "decoding does not reverse encoding"
    )
    assert payload.nbytes == len(data) - HEADER_BYTES
    return TAKEN


def _payload(cls: type[Any]) -> Callable[[bytes], str]:
    decoder = msgspec.msgpack.Decoder(cls)

    def run(data: bytes) -> str:
        try:
            value = decoder.decode(data)
        except UNREADABLE as error:
            return type(error).__name__
        assert decoder.decode(msgspec.msgpack.encode(value)) == value, "decoding does not reverse encoding"
        return TAKEN

    return run


def _unknown(data: bytes) -> str:
    """Show a message of an unknown kind on a terminal."""
    envelope = Envelope("new.kind", Header(VERSION, "new.kind", "id", "node/actor", 1), None, data)
    assert as_line(envelope).isprintable()
    return "unreadable" if "cannot be read" in json.dumps(as_object(envelope)) else TAKEN


def _join_code(data: bytes) -> str:
    try:
        code = parse_join_code(data.decode(errors="surrogateescape"))
    except JoinCodeError:
        return "no code"
    assert parse_join_code(code.text()) == code
    return TAKEN


def _endpoint(data: bytes) -> str:
    try:
        key = key_of(data.decode(errors="surrogateescape"))
    except ValueError:
        return "no endpoint"
    assert key_of(with_key("tcp://host:1", key)) == key
    return TAKEN


def _beacon(data: bytes) -> str:
    """Decode a beacon."""
    try:
        beacon = unseal(data, _KEYS)
    except BeaconError as error:
        return error.reason
    assert unseal(seal(beacon, _KEYS), _KEYS) == beacon
    return TAKEN


def _beacon_body(data: bytes) -> str:
    """Decode a beacon with this body and a valid seal, which a member could send."""
    signed = _BEACON[:_BODY_AT] + data
    return _beacon(signed + _mac(signed, _KEYS))


def _packed(*values: Any) -> tuple[bytes, ...]:
    return tuple(msgspec.msgpack.encode(value) for value in values)


def _bodies() -> Iterator[bytes]:
    for header, body in MESSAGE_FRAMES:
        kind = msgspec.msgpack.decode(header, type=Header).kind
        yield bytes([KINDS.index(kind)]) + body


_OPENING = Opening((1, 2, 3), 3, 16, frozenset({2}), SamplingParams(seed=7), ("tcp://127.0.0.1:1#" + "0" * 64,))
_CODE = new_join_code("home")
_KEYS = _CODE.keys()
_BEACON = seal(Beacon("0" * 16, "name", 1, 2, "tcp://127.0.0.1:52414"), _KEYS)
_BODY_AT = len(_named(_KEYS)) + len(_KEYS.id) // 2

TARGETS: dict[str, Target] = {
    "wire": Target(_wire, tuple(len(head).to_bytes(2, "big") + head + body for head, body in MESSAGE_FRAMES)),
    "body": Target(_body, tuple(_bodies())),
    "frame": Target(_frame, FRAMES),
    "opening": Target(_payload(Opening), _packed(_OPENING, msgspec.structs.replace(_OPENING, reuse=(1,), drop=(2, 3)))),
    "failure": Target(_payload(SessionFailure), _packed(SessionFailure(FailureCode.BUSY, "a sentence", 3))),
    "store": Target(_payload(CacheUpdate), _packed(CacheUpdate(32, (1, 2), (3,)))),
    "cache-report": Target(_payload(CacheReport), _packed(CacheReport(5, lacks=True))),
    "unknown": Target(_unknown, tuple(body for _, body in MESSAGE_FRAMES[:8])),
    "beacon": Target(_beacon, (_BEACON,)),
    "beacon-body": Target(_beacon_body, (_BEACON[_BODY_AT:-SEAL_BYTES],)),
    "join-code": Target(_join_code, tuple(_CODE.invite(role).text().encode() for role in Role)),
    "endpoint": Target(_endpoint, (b"tcp://127.0.0.1:52416#" + b"0a" * 32,)),
}
