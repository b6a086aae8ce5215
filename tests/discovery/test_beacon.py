"""`discovery.beacon`: a sealed beacon reads back, and no other datagram is accepted or even parsed."""

from __future__ import annotations

import hmac
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus import messages
from cluster.join_code import MAX_CLUSTER_NAME, JoinCode, new_join_code
from cluster.roles import Role
from discovery import beacon as module
from discovery.beacon import (
    MAGIC,
    MAX_BYTES,
    SEAL_BYTES,
    VERSION,
    Beacon,
    BeaconError,
    WrongJoinCodeError,
    is_join_endpoint_at,
    seal,
    unseal,
)
from tests.support.network.beacons import CODE, FOREIGN, JOIN, KEYS, ROTATED, beacon, datagram

PREFIX = MAGIC + bytes((VERSION, 4)) + b"home" + bytes.fromhex(KEYS.id)
BEACONS = st.builds(
    Beacon,
    node_id=st.from_regex("^[0-9a-f]{16}$", fullmatch=True),
    name=st.from_regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", fullmatch=True),
    incarnation=st.integers(0, 2**63 - 1),
    counter=st.integers(0, 2**63 - 1),
    join_endpoint=st.text(max_size=32),
    leaving=st.booleans(),
)


def sealed(body: bytes) -> bytes:
    """Put a right seal on any body."""
    signed = PREFIX + body
    return signed + hmac.digest(KEYS.beacon, signed, "sha256")[:SEAL_BYTES]


def reason(data: bytes) -> str:
    with pytest.raises(BeaconError) as refused:
        unseal(data, KEYS)
    return refused.value.reason


@given(BEACONS)
def test_beacon_reads_back(sent: Beacon) -> None:
    assert unseal(seal(sent, KEYS), KEYS) == sent


@pytest.mark.parametrize("role", Role)
def test_every_role_can_read_beacons(role: Role) -> None:
    assert unseal(datagram(), CODE.invite(role).keys()) == beacon()


def test_longest_beacon_fits() -> None:
    keys = new_join_code("n" * MAX_CLUSTER_NAME).keys()
    longest = Beacon("f" * 16, "n" * 63, 2**63 - 1, 2**63 - 1, "tcp://255.255.255.255:65535", True)
    assert unseal(seal(longest, keys), keys) == longest
    assert len(seal(longest, keys)) <= MAX_BYTES


def test_shortest_datagram_passes_the_size_check() -> None:
    keys = JoinCode("n", Role.MEMBER, bytes(32)).keys()
    signed = MAGIC + bytes((VERSION, 1)) + b"n" + bytes.fromhex(keys.id) + b"\xc0"
    with pytest.raises(BeaconError, match="forged"):
        unseal(signed + bytes(SEAL_BYTES), keys)


def test_version_is_that_of_the_bus_messages() -> None:
    assert VERSION == messages.VERSION


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "size"),
        (datagram()[:31], "size"),
        (datagram() + bytes(MAX_BYTES), "size"),
        (b"EXOB" + datagram()[4:], "magic"),
        (MAGIC + bytes([VERSION + 1]) + datagram()[5:], "version"),
        (datagram(keys=FOREIGN), "another cluster"),
        (datagram(keys=ROTATED), "wrong code"),
        (datagram()[:-1] + bytes([datagram()[-1] ^ 1]), "forged"),
        (datagram()[:-20] + b"\xff" + datagram()[-19:], "forged"),
        (datagram() + b"\0", "forged"),
        (sealed(b""), "body"),
    ],
)
def test_each_kind_of_foreign_datagram_has_its_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_name_with_our_prefix_is_another_cluster() -> None:
    assert reason(datagram(keys=JoinCode("home-2", Role.MEMBER, bytes(32)).keys())) == "another cluster"


def test_other_secret_under_our_name_is_wrong() -> None:
    with pytest.raises(WrongJoinCodeError):
        unseal(datagram(keys=ROTATED), KEYS)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        b"\x81" * 150,  # maps in maps
        b"\x91" * 180,
        b"\xc7\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",  # a map of 2**32 - 1 keys
        b"\xa4\xff\xff\xff\xff",  # no UTF-8
        msgspec.msgpack.encode({"node_id": "1"}),
        msgspec.msgpack.encode(beacon()) + b"\0",
        msgspec.msgpack.encode(beacon(node_id="../../../etc/pas")),
        msgspec.msgpack.encode(beacon(name="red \x1b[31m")),
        msgspec.msgpack.encode(beacon(name="")),
        msgspec.msgpack.encode(beacon(name="n" * 64)),
        msgspec.msgpack.encode(beacon(name="node-1\n")),
        msgspec.msgpack.encode(beacon(counter=-1)),
        msgspec.msgpack.encode(beacon(incarnation=2**63)),
        msgspec.msgpack.encode(beacon(join_endpoint="g" * 33)),
    ],
)
def test_bad_body_under_a_right_seal_is_refused(body: bytes) -> None:
    assert reason(sealed(body)) == "body"


def test_body_without_a_right_seal_is_never_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr(module, "_decode", parsed.append)
    for data in (datagram(keys=FOREIGN), datagram(keys=ROTATED), datagram()[:-1] + b"\0", sealed(b"\x91" * 150)[:-1]):
        reason(data)
    assert not parsed
    unseal(sealed(b"\x91" * 150), KEYS)
    assert parsed == [b"\x91" * 150]


def test_unknown_fields_are_ignored() -> None:
    later = {**msgspec.to_builtins(beacon()), "color": "blue"}
    assert unseal(sealed(msgspec.msgpack.encode(later)), KEYS) == beacon()


# -- every other input raises BeaconError


@given(st.binary(max_size=MAX_BYTES + 8))
@example(PREFIX)
@example(PREFIX[:-1])
def test_noise_is_refused(noise: bytes) -> None:
    assert reason(noise)


@given(st.binary(max_size=MAX_BYTES))
def test_noise_after_a_right_prefix_is_refused(noise: bytes) -> None:
    assert reason(PREFIX + noise) in {"size", "forged"}


@given(st.binary(max_size=200))
@example(b"\x80")
def test_noise_under_a_right_seal_is_refused(noise: bytes) -> None:
    assert reason(sealed(noise)) in {"size", "body"}


@given(st.data())
def test_changed_beacon_is_refused(data: Any) -> None:
    genuine = datagram()
    changed = bytearray(genuine)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(changed)))
        end = data.draw(st.integers(begin, min(begin + 8, len(changed))))
        changed[begin:end] = data.draw(st.binary(max_size=8))
    if bytes(changed) != genuine:
        assert reason(bytes(changed))


@given(st.integers(0, len(datagram()) * 8 - 1))
def test_beacon_with_one_flipped_bit_is_refused(bit: int) -> None:
    flipped = bytearray(datagram())
    flipped[bit // 8] ^= 1 << bit % 8
    assert reason(bytes(flipped))


# -- where a join port may be


@pytest.mark.parametrize(
    ("join_endpoint", "source"),
    [(JOIN, "192.0.2.7"), ("tcp://127.0.0.1:1", "127.0.0.1"), ("tcp://127.0.0.9:65535", "127.0.0.1")],
)
def test_join_port_at_the_source_address_is_accepted(join_endpoint: str, source: str) -> None:
    assert is_join_endpoint_at(join_endpoint, source)


@pytest.mark.parametrize(
    "join_endpoint",
    ["", "192.0.2.7:1", "tcp://192.0.2.8:1", "tcp://192.0.2.7", "tcp://192.0.2.7:0", "tcp://192.0.2.7:65536",
     "tcp://192.0.2.7:01", "tcp://192.0.2.7:1/x", "tcp://192.0.2.7:1\n", "tcp://192.0.2.7:١", "ipc:///etc/shadow",
     "tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://0.0.0.0:1", "tcp://*:1", "tcp://192.0.2.7:1#" + "0" * 64,
     "tcp://192.0.2.7;eth0:1", "tcp://[::1]:1", "tcp://192.0.2.07:1"],
)  # fmt: skip
def test_any_other_join_port_is_refused(join_endpoint: str) -> None:
    assert not is_join_endpoint_at(join_endpoint, "192.0.2.7")


@pytest.mark.parametrize(
    "join_endpoint", ["tcp://192.0.2.7:1", "tcp://127.1:1", "tcp://127.000.0.1:1", "tcp://....1.2:1"]
)
def test_only_loopback_is_accepted_from_loopback(join_endpoint: str) -> None:
    assert not is_join_endpoint_at(join_endpoint, "127.0.0.1")
