"""The gateway's end of the data plane between nodes: real sockets, keys, and whom it believes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from bus.dataplane.access import ClusterAccess
from bus.dataplane.frames import Flag, Frame, FrameError
from bus.dataplane.transport import Array, Transport
from bus.net.endpoints import with_key
from bus.net.keys import new_key_pair
from cluster.failures import FailureCode
from cluster.openings import Failure, Opening
from cluster.placement import Instance, PlacedStage
from cluster.sampling import SamplingParams
from cluster.shard import Shard
from gateway.core.data_plane import DataPlane, _failure, believes
from gateway.core.session import QueuePosition, Session, SessionFailed, Token
from tests.support.access import only_tcp, raw_dealer, reaches, tcp
from tests.support.bus import WITHIN_S, in_time, run_folder

EPOCH = 3
PROMPT = (1, 2, 3)
TOKEN = np.array([7], np.int32)
PLACE = np.array([2, 0], np.int32)
FAILURE = np.frombuffer(msgspec.msgpack.encode(Failure(FailureCode.ENGINE, "forged")), np.uint8)
FIRST, LAST, OWNER, UNKNOWN_NODE = range(4)


@dataclass
class Cluster:
    """A gateway on a node of its own, a ring of two, and a node that has no part in it."""

    plane: DataPlane
    places: list[ClusterAccess]
    rings: list[Transport]
    instance: Instance

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session that runs while the block does."""
        opening = Opening(PROMPT, 3, 9, frozenset(), SamplingParams(), only_tcp(self.plane.endpoints))
        hearing = asyncio.create_task(self.plane.hear())
        try:
            async with self.plane.session(self.instance, opening) as session:
                yield session
        finally:
            hearing.cancel()
            with suppress(asyncio.CancelledError):
                await hearing

    def say(self, node: int, session: Session, flags: int, payload: Array, index: int = 0) -> None:
        """A node sends the gateway a frame."""
        frame = Frame(flags, EPOCH, session.id, position=len(PROMPT) + index)
        self.rings[node].send(tcp(self.plane.endpoints), frame, payload)

    async def dropped(self, expected: dict[str, int]) -> None:
        """Wait until the gateway has dropped this."""
        assert await asyncio.to_thread(in_time, lambda: dict(self.plane.dropped) == expected), self.plane.dropped


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as path:
        yield path


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 2 * WITHIN_S))


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    places = reaches(4)
    with ExitStack() as stack:
        rings = [Transport(folder, f"node-{index}", place) for index, place in enumerate(places)]
        for ring in rings:
            stack.callback(ring.close)
        plane = DataPlane(folder, places[OWNER])
        stack.callback(plane.close)
        stages = tuple(
            PlacedStage(
                places[index].pair.node_id, Shard("m", index, index + 1, 2), endpoints=only_tcp(rings[index].endpoints)
            )
            for index in (FIRST, LAST)
        )
        yield Cluster(plane, places, rings, Instance("i", "m", EPOCH, stages))


def test_each_stage_of_a_session_is_heard_and_nobody_else(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session() as session:
            for node in (UNKNOWN_NODE, OWNER):
                for flags, payload in ((Flag.TOKEN, TOKEN), (Flag.PLACE, PLACE), (Flag.FAILED, FAILURE)):
                    nodes.say(node, session, flags, payload)
            nodes.say(FIRST, session, Flag.TOKEN, TOKEN)
            await nodes.dropped({"not from there": 7})
            nodes.say(FIRST, session, Flag.PLACE, PLACE)
            assert await session.next() == QueuePosition(2, 0)
            nodes.say(LAST, session, Flag.TOKEN, TOKEN)
            assert await session.next() == Token(7, False)
            nodes.say(FIRST, session, Flag.FAILED, FAILURE)
            with pytest.raises(SessionFailed, match="forged"):
                await session.next()

    run(test())


@pytest.mark.parametrize("sender", ["", "aa", "bb", "cc"])
@pytest.mark.parametrize("flags", [Flag.TOKEN, Flag.TOKEN | Flag.FINISHED, Flag.PLACE, Flag.FAILED, 0, Flag.OPEN])
def test_a_gateway_believes_the_last_stage_its_tokens_and_the_first_its_queue(sender: str, flags: int) -> None:
    expected = {
        "": True,
        "aa": bool(flags & (Flag.PLACE | Flag.FAILED)),
        "bb": bool(flags & Flag.FAILED),
        "cc": True,
    }
    assert believes(flags, sender, ("aa", "bb", "cc")) is (expected[sender] if sender else True)
    assert believes(flags, "dd", ("aa", "bb", "cc")) is False


def test_what_was_sent_already_is_dropped(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session() as session:
            with raw_dealer(nodes.places[LAST].pair, tcp(nodes.plane.endpoints)) as raw:
                first = Frame(Flag.TOKEN, EPOCH, session.id, 3, 1, sequence=1).pack(TOKEN.tobytes())
                second = Frame(Flag.TOKEN, EPOCH, session.id, 4, 1, sequence=2).pack(TOKEN.tobytes())
                for message in (first, first, second, first, second):
                    raw.send(message)
                await nodes.dropped({"replayed": 3})
                assert [await session.next() for _ in range(2)] == [Token(7, False)] * 2

    run(test())


def test_a_node_whose_link_is_gone_is_not_believed(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session() as session:
            nodes.say(LAST, session, Flag.TOKEN, TOKEN)
            await session.next()
            nodes.places[OWNER].linked.gone(nodes.places[LAST].pair.node_id)
            nodes.say(LAST, session, Flag.TOKEN, TOKEN, index=1)
            await nodes.dropped({"foreign": 1})

    run(test())


def test_a_key_that_is_not_linked_does_not_get_in(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session():
            with raw_dealer(new_key_pair(), tcp(nodes.plane.endpoints)) as raw:
                raw.setsockopt(zmq.SNDTIMEO, 500)
                with pytest.raises(zmq.Again):
                    await asyncio.to_thread(raw.send, b"x")
            await nodes.dropped({})

    run(test())


def test_no_prompt_goes_to_a_node_that_is_not_linked(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes:
            async with nodes.session():
                assert await asyncio.to_thread(nodes.rings[FIRST].receive, 5000)
            nodes.places[OWNER].linked.gone(nodes.places[FIRST].pair.node_id)
            with pytest.raises(SessionFailed, match="not linked"):
                async with nodes.session():
                    raise AssertionError("a session began")
            assert await asyncio.to_thread(nodes.rings[FIRST].receive, 5000), "the close of the first session"
            assert nodes.rings[FIRST].receive(200) is None

    run(test())


def test_no_prompt_goes_to_another_node_than_the_instance_says(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes:
            first, last = nodes.instance.stages
            elsewhere = msgspec.structs.replace(first, endpoints=only_tcp(nodes.rings[UNKNOWN_NODE].endpoints))
            nodes.instance = msgspec.structs.replace(nodes.instance, stages=(elsewhere, last))
            with pytest.raises(SessionFailed, match="does not belong to node"):
                async with nodes.session():
                    raise AssertionError("a session began")
            assert nodes.rings[UNKNOWN_NODE].receive(200) is None

    run(test())


def test_the_close_of_a_session_whose_node_is_gone_is_no_error(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session():
            nodes.places[OWNER].linked.gone(nodes.places[FIRST].pair.node_id)

    run(test())


def test_a_gateway_that_stands_alone_listens_on_ipc_only(folder: Path) -> None:
    async def test() -> None:
        plane = DataPlane(folder)
        try:
            assert plane.endpoints == (f"ipc://{folder}/gateway.ring",)
            elsewhere = with_key("tcp://127.0.0.1:1", new_key_pair().public)
            instance = Instance("i", "m", 1, (PlacedStage("", Shard("m", 0, 1, 1), endpoints=(elsewhere,)),))
            opening = Opening(PROMPT, 3, 9, frozenset(), SamplingParams(), plane.endpoints)
            with pytest.raises(SessionFailed, match="stands alone"):
                async with plane.session(instance, opening):
                    raise AssertionError("a session began")
        finally:
            plane.close()

    run(test())


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x81\xa4code\xa2\xff\xfe", b"\x81\xa1x" + b"\x91" * 10_000])
def test_a_failure_that_does_not_parse_is_no_frame(payload: bytes) -> None:
    with pytest.raises(FrameError, match="payload"):
        _failure(np.frombuffer(payload, np.uint8))
