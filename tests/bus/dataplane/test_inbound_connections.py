"""`bus.dataplane.inbound_connections`: the senders of frames, and their sequence numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from bus.dataplane import inbound_connections
from bus.dataplane.frames import Frame, FrameError
from bus.dataplane.inbound_connections import InboundConnections, sender_of
from bus.net.keys import new_key_pair
from tests.support.bus import WITHIN_S
from tests.support.network.dataplane import linked_nodes, next_frame, open_transport, raw_dealer

HIDDEN = Frame(0, 1, 2, position=5)


@pytest.mark.parametrize("over", ["ipc", "tcp"])
def test_replayed_frame_is_dropped_and_counted(folder: Path, over: str) -> None:
    here, there = linked_nodes(2)
    with open_transport(folder, "two", there) as two:
        with raw_dealer(here.pair, two.endpoints[over == "tcp"]) as raw:
            for sequence in (1, 2, 2, 1, 3, 3, 0, 7, 6, 8):
                raw.send(HIDDEN._replace(sequence=sequence, position=sequence).pack())
            came = [next_frame(two)[0].sequence for _ in range(5)]
        assert came == [1, 2, 3, 7, 8]
        assert two.dropped == {"replayed": 5, "lost before this frame": 1}


def test_each_connection_has_its_own_numbers(folder: Path) -> None:
    here, there, third = linked_nodes(3)
    with (
        open_transport(folder, "two", there) as two,
        raw_dealer(here.pair, two.endpoints[1]) as one,
        raw_dealer(third.pair, two.endpoints[1]) as other,
    ):
        for sequence in (1, 2):
            for raw in (one, other):
                raw.send(HIDDEN._replace(sequence=sequence).pack())
        came = sorted(next_frame(two)[::2] for _ in range(4))
        assert sorted({sender for _, sender in came}) == sorted({here.pair.node_id, third.pair.node_id})
        assert not two.dropped


def test_least_recently_used_senders_are_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_connections, "MAX_INBOUND", 4)
    with open_transport(folder, "two") as two:
        for _ in range(8):
            with raw_dealer(new_key_pair(), two.endpoints[0]) as raw:
                raw.send(HIDDEN._replace(sequence=1).pack())
                next_frame(two)
        assert len(two._inbound._known) <= 4
        assert not two.dropped


def test_tcp_connection_without_a_key_has_no_node() -> None:
    """No port of ours has one; it would be a fault of the factory."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, int(WITHIN_S * 1000))
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.send(b"x")
        source, part = router.recv_multipart(copy=False)
        assert sender_of(part) == inbound_connections.UNKNOWN_NODE
        (access,) = linked_nodes(1)
        known = InboundConnections(access)
        known.add(source.bytes, part)
        with pytest.raises(FrameError, match="not linked"):
            known.sender(source.bytes)
