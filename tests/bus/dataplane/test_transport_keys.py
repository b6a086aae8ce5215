"""The data plane between nodes: two real rings over tcp on loopback, and whoever else knocks there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from bus.dataplane import inbound as senders
from bus.dataplane import transport as module
from bus.dataplane.access import ClusterAccess
from bus.dataplane.frames import Flag, Frame, FrameError
from bus.dataplane.inbound import InboundConnections, sender_of
from bus.dataplane.transport import NeighbourGone, Received, Transport
from bus.net.endpoints import address_of, with_key
from bus.net.keys import new_key_pair
from tests.support.access import peer, raw_dealer, reach, reaches
from tests.support.bus import WITHIN_S, in_time, run_folder
from tests.support.relay import Relay

HIDDEN = Frame(0, 1, 2, position=5)
ROW = np.zeros((1, 8), np.float32)


@contextmanager
def ring(folder: Path, name: str, place: ClusterAccess | None = None) -> Iterator[Transport]:
    made = Transport(folder, name, place)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as path:
        yield path


def received(receiver: Transport) -> Received:
    deadline = time.monotonic() + WITHIN_S
    while (came := receiver.receive(100)) is None:
        assert time.monotonic() < deadline, f"no frame came: {receiver.dropped}"
    return came


def nothing_but(receiver: Transport, dropped: dict[str, int]) -> bool:
    """Whether in time the ring has dropped this and heard nothing."""
    return in_time(lambda: receiver.receive() is None and receiver.dropped == dropped)


def test_a_frame_tells_its_sender_by_the_key_of_the_connection(folder: Path) -> None:
    here, there = reaches(2)
    with ring(folder, "one", here) as one, ring(folder, "two", there) as two:
        for endpoint, sender in ((two.endpoints[1], here.pair.node_id), (two.endpoints[0], "")) * 2:
            one.send(endpoint, HIDDEN, ROW)
            assert received(two)[2] == sender
        assert two.endpoints[1].endswith(f"#{there.pair.public.hex()}")


def test_a_key_that_is_not_linked_does_not_get_in(folder: Path) -> None:
    here, there = reaches(2)
    stranger = new_key_pair()
    with ring(folder, "two", there) as two, ring(folder, "one", here) as one:
        with raw_dealer(stranger, two.endpoints[1]) as raw:
            raw.setsockopt(zmq.SNDTIMEO, 500)
            with pytest.raises(zmq.Again):
                raw.send(HIDDEN._replace(sequence=1).pack())
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert received(two)[2] == here.pair.node_id
        assert not two.dropped


def test_who_speaks_without_keys_does_not_get_in(folder: Path) -> None:
    (there,) = reaches(1)
    with ring(folder, "two", there) as two, zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.setsockopt(zmq.LINGER, 0)
        plain.setsockopt(zmq.IMMEDIATE, 1)
        plain.setsockopt(zmq.SNDTIMEO, 500)
        plain.connect(address_of(two.endpoints[1]))
        with pytest.raises(zmq.Again):
            plain.send(HIDDEN._replace(sequence=1).pack())
        assert nothing_but(two, {})


def test_what_an_unlinked_node_has_open_is_believed_no_more(folder: Path) -> None:
    here, there = reaches(2)
    with ring(folder, "one", here) as one, ring(folder, "two", there) as two:
        one.send(two.endpoints[1], HIDDEN, ROW)
        received(two)
        there.linked.gone(here.pair.node_id)
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert nothing_but(two, {"foreign": 1})
        there.linked.standing([peer(here.pair)])
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert received(two)[0].sequence == 3


def test_nothing_is_sent_to_a_node_whose_link_is_gone(folder: Path) -> None:
    here, there = reaches(2)
    with ring(folder, "one", here) as one, ring(folder, "two", there) as two:
        one.send(two.endpoints[1], HIDDEN, ROW)
        received(two)
        here.linked.gone(there.pair.node_id)
        for _ in range(2):
            with pytest.raises(NeighbourGone, match="not linked"):
                one.send(two.endpoints[1], HIDDEN, ROW)
        here.linked.standing([peer(there.pair)])
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert received(two)[0].sequence == 1, "the old connection was still used"


def test_a_stranger_cannot_be_introduced(folder: Path) -> None:
    (here,) = reaches(1)
    with ring(folder, "one", here) as one, pytest.raises(ValueError, match="not linked"):
        one.introduce(with_key("tcp://127.0.0.1:1", new_key_pair().public))


def test_who_answers_with_another_key_than_the_end_points_hears_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_WITHIN_MS", 400)
    here, there, impostor = reaches(3)
    with ring(folder, "one", here) as one, ring(folder, "three", impostor) as three:
        claimed = with_key(address_of(three.endpoints[1]), there.pair.public)
        with pytest.raises(NeighbourGone, match="took nothing"):
            one.send(claimed, HIDDEN, ROW)
        assert nothing_but(three, {})


def test_a_connection_whose_key_was_refused_is_dialled_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_WITHIN_MS", 400)
    monkeypatch.setattr(module, "GONE_FOR_S", 0.2)
    pairs = new_key_pair(), new_key_pair()
    here, there = reach(*pairs), reach(pairs[1])  # the other end has not heard of the link yet
    with ring(folder, "one", here) as one, ring(folder, "two", there) as two:
        with pytest.raises(NeighbourGone):
            one.send(two.endpoints[1], HIDDEN, ROW)
        there.linked.standing([peer(pairs[0])])
        assert in_time(lambda: sent(one, two.endpoints[1]))
        assert received(two)[2] == pairs[0].node_id


def sent(one: Transport, endpoint: str) -> bool:
    try:
        one.send(endpoint, HIDDEN, ROW)
    except NeighbourGone:
        return False
    return True


def test_a_ring_that_stands_alone_listens_on_ipc_only(folder: Path) -> None:
    (there,) = reaches(1)
    with ring(folder, "one") as one, ring(folder, "two", there) as two:
        assert one.endpoints == (f"ipc://{folder}/one.ring",)
        assert one.own_id == ""
        with pytest.raises(NeighbourGone, match="stands alone"):
            one.send(two.endpoints[1], HIDDEN, ROW)
        one.send(two.endpoints[0], HIDDEN, ROW)
        assert received(two)[2] == ""


# -- sequences


@pytest.mark.parametrize("over", ["ipc", "tcp"])
def test_a_frame_that_was_sent_already_is_dropped_and_counted(folder: Path, over: str) -> None:
    here, there = reaches(2)
    with ring(folder, "two", there) as two:
        with raw_dealer(here.pair, two.endpoints[over == "tcp"]) as raw:
            for sequence in (1, 2, 2, 1, 3, 3, 0, 7, 6, 8):
                raw.send(HIDDEN._replace(sequence=sequence, position=sequence).pack())
            came = [received(two)[0].sequence for _ in range(5)]
        assert came == [1, 2, 3, 7, 8]
        assert two.dropped == {"replayed": 5, "lost before this frame": 1}


def test_each_connection_is_counted_by_itself(folder: Path) -> None:
    here, there, third = reaches(3)
    with (
        ring(folder, "two", there) as two,
        raw_dealer(here.pair, two.endpoints[1]) as one,
        raw_dealer(third.pair, two.endpoints[1]) as other,
    ):
        for sequence in (1, 2):
            for raw in (one, other):
                raw.send(HIDDEN._replace(sequence=sequence).pack())
        heard = sorted(received(two)[::2] for _ in range(4))
        assert sorted({sender for _, sender in heard}) == sorted({here.pair.node_id, third.pair.node_id})
        assert not two.dropped


def test_a_count_goes_on_where_its_32_bits_end(folder: Path) -> None:
    with ring(folder, "one") as one, ring(folder, "two") as two:
        one.send(two.endpoints[0], HIDDEN, ROW)
        received(two)
        near = 2**31
        while near < 2**32 - 1:  # in steps that are no replay
            one._neighbours[two.endpoints[0]].sent = near - 1
            one.send(two.endpoints[0], HIDDEN, ROW)
            assert received(two)[0].sequence == near
            near = min(near + 2**30, 2**32 - 1)
        one._neighbours[two.endpoints[0]].sent = near - 1
        assert [sent(one, two.endpoints[0]) and received(two)[0].sequence for _ in range(3)] == [2**32 - 1, 0, 1]
        assert "replayed" not in two.dropped


def test_of_many_connections_the_oldest_are_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "MAX_SENDERS", 4)
    with ring(folder, "two") as two:
        for _ in range(8):
            with raw_dealer(new_key_pair(), two.endpoints[0]) as raw:
                raw.send(HIDDEN._replace(sequence=1).pack())
                received(two)
        assert len(two._senders._known) <= 4
        assert not two.dropped


def test_a_tcp_connection_without_a_key_is_nobodys() -> None:
    """No port of ours has one; it would be a fault of the factory."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, int(WITHIN_S * 1000))
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.send(b"x")
        source, part = router.recv_multipart(copy=False)
        assert sender_of(part) == senders.UNKNOWN_NODE
        (place,) = reaches(1)
        known = InboundConnections(place)
        known.meet(source.bytes, part)
        with pytest.raises(FrameError, match="foreign"):
            known.node(source.bytes)


def test_what_travels_between_machines_shows_no_byte_of_a_prompt(folder: Path) -> None:
    secret = b"the prompt that nobody shall read " * 8
    here, there = reaches(2)
    relay = Relay(keep=True)
    try:
        with ring(folder, "one", here) as one, ring(folder, "two", there) as two:
            one.send(relay.before(two.endpoints[1]), HIDDEN._replace(flags=Flag.OPEN), secret)
            assert received(two)[1].tobytes() == secret
    finally:
        relay.close()
    assert len(relay.seen) > len(secret)
    assert not [at for at in range(34) if secret[at : at + 8] in relay.seen]
