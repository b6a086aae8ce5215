"""`bus.dataplane.transport` between nodes: CURVE keys, and links that come and go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zmq

from bus.dataplane import transport as module
from bus.dataplane.frames import Flag, Frame
from bus.dataplane.transport import PeerUnreachable, Transport
from bus.net.endpoints import address_of, with_key
from bus.net.keys import new_key_pair
from tests.support.bus import in_time
from tests.support.network.dataplane import linked_nodes, new_access, next_frame, open_transport, peer, raw_dealer
from tests.support.network.relay import Relay

HIDDEN = Frame(0, 1, 2, position=5)
ROW = np.zeros((1, 8), np.float32)


def nothing_but(receiver: Transport, dropped: dict[str, int]) -> bool:
    """Return whether the transport has dropped this in time, and received nothing."""
    return in_time(lambda: receiver.receive() is None and receiver.dropped == dropped)


def test_sender_is_known_from_the_connections_key(folder: Path) -> None:
    here, there = linked_nodes(2)
    with open_transport(folder, "one", here) as one, open_transport(folder, "two", there) as two:
        for endpoint, sender in ((two.endpoints[1], here.pair.node_id), (two.endpoints[0], "")) * 2:
            one.send(endpoint, HIDDEN, ROW)
            assert next_frame(two)[2] == sender
        assert two.endpoints[1].endswith(f"#{there.pair.public.hex()}")


def test_unlinked_key_cannot_connect(folder: Path) -> None:
    here, there = linked_nodes(2)
    unlinked = new_key_pair()
    with open_transport(folder, "two", there) as two, open_transport(folder, "one", here) as one:
        with raw_dealer(unlinked, two.endpoints[1]) as raw:
            raw.setsockopt(zmq.SNDTIMEO, 500)
            with pytest.raises(zmq.Again):
                raw.send(HIDDEN._replace(sequence=1).pack())
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert next_frame(two)[2] == here.pair.node_id
        assert not two.dropped


def test_connection_without_keys_is_refused(folder: Path) -> None:
    (there,) = linked_nodes(1)
    with open_transport(folder, "two", there) as two, zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.setsockopt(zmq.LINGER, 0)
        plain.setsockopt(zmq.IMMEDIATE, 1)
        plain.setsockopt(zmq.SNDTIMEO, 500)
        plain.connect(address_of(two.endpoints[1]))
        with pytest.raises(zmq.Again):
            plain.send(HIDDEN._replace(sequence=1).pack())
        assert nothing_but(two, {})


def test_open_connection_of_an_unlinked_node_is_ignored(folder: Path) -> None:
    here, there = linked_nodes(2)
    with open_transport(folder, "one", here) as one, open_transport(folder, "two", there) as two:
        one.send(two.endpoints[1], HIDDEN, ROW)
        next_frame(two)
        there.allowlist.remove(here.pair.node_id)
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert nothing_but(two, {"not linked": 1})
        there.allowlist.add([peer(here.pair)])
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert next_frame(two)[0].sequence == 3


def test_nothing_is_sent_to_an_unlinked_node(folder: Path) -> None:
    here, there = linked_nodes(2)
    with open_transport(folder, "one", here) as one, open_transport(folder, "two", there) as two:
        one.send(two.endpoints[1], HIDDEN, ROW)
        next_frame(two)
        here.allowlist.remove(there.pair.node_id)
        for _ in range(2):
            with pytest.raises(PeerUnreachable, match="not linked"):
                one.send(two.endpoints[1], HIDDEN, ROW)
        here.allowlist.add([peer(there.pair)])
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert next_frame(two)[0].sequence == 1, "the old connection was still used"


def test_unlinked_node_cannot_be_connected_to(folder: Path) -> None:
    (here,) = linked_nodes(1)
    with open_transport(folder, "one", here) as one, pytest.raises(ValueError, match="not linked"):
        one.connect(with_key("tcp://127.0.0.1:1", new_key_pair().public))


def test_listener_with_another_key_receives_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_TIMEOUT_MS", 400)
    here, there, impostor = linked_nodes(3)
    with open_transport(folder, "one", here) as one, open_transport(folder, "three", impostor) as three:
        claimed = with_key(address_of(three.endpoints[1]), there.pair.public)
        with pytest.raises(PeerUnreachable, match="accepted no frame"):
            one.send(claimed, HIDDEN, ROW)
        assert nothing_but(three, {})


def test_refused_connection_is_dialed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_TIMEOUT_MS", 400)
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.2)
    pairs = new_key_pair(), new_key_pair()
    here, there = new_access(*pairs), new_access(pairs[1])  # the other end has no link yet
    with open_transport(folder, "one", here) as one, open_transport(folder, "two", there) as two:
        with pytest.raises(PeerUnreachable):
            one.send(two.endpoints[1], HIDDEN, ROW)
        there.allowlist.add([peer(pairs[0])])
        assert in_time(lambda: sent(one, two.endpoints[1]))
        assert next_frame(two)[2] == pairs[0].node_id


def sent(one: Transport, endpoint: str) -> bool:
    try:
        one.send(endpoint, HIDDEN, ROW)
    except PeerUnreachable:
        return False
    return True


def test_standalone_transport_listens_on_ipc_only(folder: Path) -> None:
    (there,) = linked_nodes(1)
    with open_transport(folder, "one") as one, open_transport(folder, "two", there) as two:
        assert one.endpoints == (f"ipc://{folder}/one.ring",)
        assert one.own_id == ""
        with pytest.raises(PeerUnreachable, match="stands alone"):
            one.send(two.endpoints[1], HIDDEN, ROW)
        one.send(two.endpoints[0], HIDDEN, ROW)
        assert next_frame(two)[2] == ""


def test_sequence_numbers_wrap_around(folder: Path) -> None:
    with open_transport(folder, "one") as one, open_transport(folder, "two") as two:
        one.send(two.endpoints[0], HIDDEN, ROW)
        next_frame(two)
        near = 2**31
        while near < 2**32 - 1:  # in steps that are no replay
            one._connections.get(two.endpoints[0]).sequence = near - 1
            one.send(two.endpoints[0], HIDDEN, ROW)
            assert next_frame(two)[0].sequence == near
            near = min(near + 2**30, 2**32 - 1)
        one._connections.get(two.endpoints[0]).sequence = near - 1
        assert [sent(one, two.endpoints[0]) and next_frame(two)[0].sequence for _ in range(3)] == [2**32 - 1, 0, 1]
        assert "replayed" not in two.dropped


def test_prompt_is_encrypted_between_machines(folder: Path) -> None:
    secret = b"a prompt that must not be readable" * 8
    here, there = linked_nodes(2)
    relay = Relay(keep=True)
    try:
        with open_transport(folder, "one", here) as one, open_transport(folder, "two", there) as two:
            one.send(relay.before(two.endpoints[1]), HIDDEN._replace(flags=Flag.OPEN), secret)
            assert next_frame(two)[1].tobytes() == secret
    finally:
        relay.close()
    assert len(relay.seen) > len(secret)
    assert not [at for at in range(34) if secret[at : at + 8] in relay.seen]
