"""`bus.dataplane.transport`: two transports on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from bus.dataplane import transport as module
from bus.dataplane.connections import MAX_CONNECTIONS
from bus.dataplane.frames import FRAGMENT_BYTES, Flag, Frame
from bus.dataplane.transport import PeerUnreachable, Transport
from bus.net.endpoints import with_key
from tests.support.bus import WITHIN_S
from tests.support.network.dataplane import linked_nodes, next_frame, open_transport

HIDDEN = Frame(0, 1, 2, position=5)


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the time in which a frame has to be accepted, and return it in seconds."""
    monkeypatch.setattr(module, "SEND_TIMEOUT_MS", 400)
    return 0.4


@pytest.fixture
def pair(folder: Path) -> Iterator[tuple[Transport, Transport]]:
    here, there = linked_nodes(2)
    with open_transport(folder, "one", here) as one, open_transport(folder, "two", there) as two:
        yield one, two


@pytest.mark.parametrize("which", [0, 1], ids=["ipc", "tcp"])
def test_frame_arrives_with_its_rows(pair: tuple[Transport, Transport], which: int) -> None:
    one, two = pair
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    one.send(two.endpoints[which], HIDDEN, rows)
    frame, array, _ = next_frame(two)
    assert (frame.position, frame.rows, frame.width, frame.sequence) == (5, 3, 4, 1)
    np.testing.assert_array_equal(array, rows)


def test_decoded_token_is_one_message(pair: tuple[Transport, Transport]) -> None:
    one, two = pair
    one.send(two.endpoints[0], HIDDEN, np.zeros((1, 576), np.float16))
    frame, array, _ = next_frame(two)
    assert not frame.flags & Flag.MORE
    assert len(frame.pack()) + array.nbytes == 2 * 576 + 64
    assert two.receive() is None


@pytest.mark.parametrize("count", [1, 100, 512, 513, 1000])
def test_large_chunk_travels_in_fragments(pair: tuple[Transport, Transport], count: int) -> None:
    one, two = pair
    rows = np.random.default_rng(count).standard_normal((count, 512), dtype=np.float32)
    one.send(two.endpoints[1], HIDDEN._replace(flags=Flag.SAMPLE), rows)
    parts = [next_frame(two)]
    while parts[-1][0].flags & Flag.MORE:
        parts.append(next_frame(two))
    assert len(parts) == -(-rows.nbytes // FRAGMENT_BYTES)
    assert all(array.nbytes <= FRAGMENT_BYTES for _, array, _ in parts)
    assert all(frame.flags & Flag.SAMPLE for frame, _, _ in parts)
    starts = np.cumsum([0, *(len(array) for _, array, _ in parts[:-1])]) + 5
    assert [frame.position for frame, _, _ in parts] == starts.tolist()
    np.testing.assert_array_equal(np.concatenate([array for _, array, _ in parts]), rows)


def test_large_opening_travels_whole(pair: tuple[Transport, Transport]) -> None:
    one, two = pair
    prompt = bytes(FRAGMENT_BYTES * 2 + 1)
    one.send(two.endpoints[1], HIDDEN._replace(flags=Flag.OPEN), prompt)
    frame, array, _ = next_frame(two)
    assert (frame.flags, array.nbytes) == (Flag.OPEN, len(prompt))


def test_tokens_bytes_and_empty_payloads_travel(pair: tuple[Transport, Transport]) -> None:
    one, two = pair
    for payload in (np.array([7, 8], np.int32), b"a sentence", b""):
        one.send(two.endpoints[0], HIDDEN._replace(flags=Flag.TOKEN), payload)
        frame, array, _ = next_frame(two)
        assert array.tobytes() == (payload if isinstance(payload, bytes) else payload.tobytes())
        assert frame.width == 0


def test_frames_are_numbered_from_one(pair: tuple[Transport, Transport]) -> None:
    one, two = pair
    for number in range(1, 6):
        one.send(two.endpoints[0], HIDDEN, np.zeros(1, np.int32))
        assert next_frame(two)[0].sequence == number
    assert not two.dropped


def test_gap_in_the_numbers_is_counted(pair: tuple[Transport, Transport]) -> None:
    _, two = pair
    with raw_sender(two) as raw:
        for sequence in (1, 2, 5, 6):
            raw.send(HIDDEN._replace(sequence=sequence, rows=1).pack(bytes(4)))
            assert next_frame(two)[0].sequence == sequence
    assert two.dropped == {"lost before this frame": 1}


@contextmanager
def raw_sender(to: Transport) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 2000)
        dealer.connect(to.endpoints[0])
        yield dealer


def test_invalid_frames_are_counted_and_dropped(pair: tuple[Transport, Transport]) -> None:
    _, two = pair
    good = HIDDEN._replace(sequence=1, rows=1).pack()
    with raw_sender(two) as raw:
        for parts in ([b"x"], [good, bytes(4)], [b"x" * 64], [good], [good + bytes(3)], [good + bytes(4)]):
            raw.send_multipart(parts)
        assert next_frame(two)[0].sequence == 1
    assert two.dropped == {"header size": 2, "magic": 1, "payload size": 2}


@pytest.mark.parametrize("endpoint", ["tcp", "ipc:///no/such/socket"])
def test_unreachable_peer_fails_at_once_after_its_timeout(folder: Path, endpoint: str, short_deadline: float) -> None:
    here, there = linked_nodes(2)
    endpoint = with_key("tcp://127.0.0.1:1", there.pair.public) if endpoint == "tcp" else endpoint
    with open_transport(folder, "one", here) as one:
        waits = []
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(PeerUnreachable, match="accepted no frame"):
                one.send(endpoint, HIDDEN, b"")
            waits.append(time.monotonic() - begun)
    assert short_deadline * 0.9 < waits[0] < short_deadline + 1
    assert waits[1] < short_deadline / 2


def test_peer_that_comes_back_can_be_connected_again(folder: Path, short_deadline: float) -> None:
    with open_transport(folder, "one") as one:
        endpoint = f"ipc://{folder}/two.ring"
        with pytest.raises(PeerUnreachable):
            one.send(endpoint, HIDDEN, b"")
        with open_transport(folder, "two") as two:
            one.connect(endpoint)
            one.send(endpoint, HIDDEN, b"")
            assert next_frame(two)[0].sequence == 1


def test_least_recently_used_connections_are_closed(folder: Path) -> None:
    with open_transport(folder, "one") as one, open_transport(folder, "two") as two:
        for number in range(MAX_CONNECTIONS + 5):
            one.connect(f"ipc://{folder}/{number}.ring")
        assert len(one._connections) == MAX_CONNECTIONS
        one.send(two.endpoints[0], HIDDEN, b"")
        assert next_frame(two)[0].sequence == 1


def test_malformed_endpoint_is_refused(folder: Path) -> None:
    with open_transport(folder, "one") as one, pytest.raises(ValueError, match="is no endpoint"):
        one.connect("nonsense")


def test_wake_ends_a_wait(pair: tuple[Transport, Transport]) -> None:
    one, _ = pair

    def wake_often() -> None:
        for _ in range(5000):
            one.wake()

    waker = threading.Thread(target=wake_often)
    waker.start()
    begun = time.monotonic()
    assert one.receive(int(WITHIN_S * 1000)) is None
    assert time.monotonic() - begun < WITHIN_S / 2
    waker.join(WITHIN_S)


def test_transport_may_be_closed_while_it_is_woken(folder: Path) -> None:
    for _ in range(20):
        one = Transport(folder, "one")
        closed = threading.Event()
        complaints: list[str] = []

        def wake_until_closed(
            woken: Transport = one, closed: threading.Event = closed, to: list[str] = complaints
        ) -> None:
            try:
                while not closed.is_set():
                    woken.wake()
                woken.wake()
            except zmq.ZMQError as error:
                to.append(str(error))

        waker = threading.Thread(target=wake_until_closed)
        waker.start()
        one.receive(10)
        one.close()
        closed.set()
        waker.join(WITHIN_S)
        assert not waker.is_alive()
        assert complaints == []
