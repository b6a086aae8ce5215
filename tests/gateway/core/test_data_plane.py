"""`gateway.core.data_plane` between nodes: real sockets and keys, and which frames it accepts from which node."""

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
from bus.dataplane.async_transport import AsyncTransport
from bus.dataplane.frames import Flag, Frame, FrameError, Payload
from bus.dataplane.transport import Transport
from bus.net.endpoints import with_key
from bus.net.keys import new_key_pair
from cluster.failures import FailureCode
from cluster.openings import MAX_PROMPT, Opening, SessionFailure
from cluster.placement import Instance, PlacedStage
from cluster.sampling import SamplingParams
from cluster.shard import Shard
from gateway.core.data_plane import OPEN_TIMEOUT_S, DataPlane, _failure, accepted_by_gateway
from gateway.core.session import QueuePosition, Session, SessionFailed, Token
from tests.support.bus import WITHIN_S, in_time, run_folder
from tests.support.network.dataplane import linked_nodes, only_tcp, raw_dealer, tcp

EPOCH = 3
PROMPT = (1, 2, 3)
TOKEN = np.array([7], np.int32)
POSITION = np.array([2, 0], np.int32)
FAILURE = np.frombuffer(msgspec.msgpack.encode(SessionFailure(FailureCode.ENGINE, "forged")), np.uint8)
FIRST, LAST, OWNER, UNKNOWN_NODE = range(4)


@dataclass
class Cluster:
    """A gateway on a node of its own, a ring of two stages, and a node that has no part in it."""

    plane: DataPlane
    accesses: list[ClusterAccess]
    transports: list[Transport]
    instance: Instance
    prompt: tuple[int, ...] = PROMPT

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Open a session that runs while the block does."""
        length, reply_to = len(self.prompt), only_tcp(self.plane.endpoints)
        opening = Opening(self.prompt, length, 9, frozenset(), SamplingParams(), reply_to)
        running = asyncio.create_task(self.plane.run())
        try:
            async with self.plane.session(self.instance, opening) as session:
                yield session
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    def send(self, node: int, session: Session, flags: int, payload: Payload, index: int = 0) -> None:
        """Have a node send the gateway a frame."""
        frame = Frame(flags, EPOCH, session.id, position=len(PROMPT) + index)
        self.transports[node].send(tcp(self.plane.endpoints), frame, payload)

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
    accesses = linked_nodes(4)
    with ExitStack() as stack:
        transports = [Transport(folder, f"node-{index}", access) for index, access in enumerate(accesses)]
        for transport in transports:
            stack.callback(transport.close)
        plane = DataPlane(folder, accesses[OWNER])
        stack.callback(plane.close)
        stages = tuple(
            PlacedStage(
                accesses[index].pair.node_id,
                Shard("m", index, index + 1, 2),
                endpoints=only_tcp(transports[index].endpoints),
            )
            for index in (FIRST, LAST)
        )
        yield Cluster(plane, accesses, transports, Instance("i", "m", EPOCH, stages))


def test_only_stages_of_the_session_are_accepted(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session() as session:
            for node in (UNKNOWN_NODE, OWNER):
                for flags, payload in ((Flag.TOKEN, TOKEN), (Flag.QUEUE_POSITION, POSITION), (Flag.FAILED, FAILURE)):
                    nodes.send(node, session, flags, payload)
            nodes.send(FIRST, session, Flag.TOKEN, TOKEN)
            await nodes.dropped({"wrong sender": 7})
            nodes.send(FIRST, session, Flag.QUEUE_POSITION, POSITION)
            assert await session.next() == QueuePosition(2, 0)
            nodes.send(LAST, session, Flag.TOKEN, TOKEN)
            assert await session.next() == Token(7, False)
            nodes.send(FIRST, session, Flag.FAILED, FAILURE)
            with pytest.raises(SessionFailed, match="forged"):
                await session.next()

    run(test())


@pytest.mark.parametrize("sender", ["", "aa", "bb", "cc"])
@pytest.mark.parametrize(
    "flags", [Flag.TOKEN, Flag.TOKEN | Flag.FINISHED, Flag.QUEUE_POSITION, Flag.FAILED, 0, Flag.OPEN]
)
def test_each_kind_is_accepted_from_its_stage(sender: str, flags: int) -> None:
    expected = {
        "": True,
        "aa": bool(flags & (Flag.QUEUE_POSITION | Flag.FAILED)),
        "bb": bool(flags & Flag.FAILED),
        "cc": True,
    }
    assert accepted_by_gateway(flags, sender, ("aa", "bb", "cc")) is (expected[sender] if sender else True)
    assert accepted_by_gateway(flags, "dd", ("aa", "bb", "cc")) is False


def test_replayed_frame_is_dropped(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session() as session:
            with raw_dealer(nodes.accesses[LAST].pair, tcp(nodes.plane.endpoints)) as raw:
                first = Frame(Flag.TOKEN, EPOCH, session.id, 3, 1, sequence=1).pack(TOKEN.tobytes())
                second = Frame(Flag.TOKEN, EPOCH, session.id, 4, 1, sequence=2).pack(TOKEN.tobytes())
                for message in (first, first, second, first, second):
                    raw.send(message)
                await nodes.dropped({"replayed": 3})
                assert [await session.next() for _ in range(2)] == [Token(7, False)] * 2

    run(test())


def test_frames_of_an_unlinked_node_are_dropped(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session() as session:
            nodes.send(LAST, session, Flag.TOKEN, TOKEN)
            await session.next()
            nodes.accesses[OWNER].allowlist.remove(nodes.accesses[LAST].pair.node_id)
            nodes.send(LAST, session, Flag.TOKEN, TOKEN, index=1)
            await nodes.dropped({"not linked": 1})

    run(test())


def test_unlinked_key_cannot_connect(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session():
            with raw_dealer(new_key_pair(), tcp(nodes.plane.endpoints)) as raw:
                raw.setsockopt(zmq.SNDTIMEO, 500)
                with pytest.raises(zmq.Again):
                    await asyncio.to_thread(raw.send, b"x")
            await nodes.dropped({})

    run(test())


def test_no_prompt_goes_to_an_unlinked_node(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes:
            async with nodes.session():
                assert await asyncio.to_thread(nodes.transports[FIRST].receive, 5000)
            nodes.accesses[OWNER].allowlist.remove(nodes.accesses[FIRST].pair.node_id)
            with pytest.raises(SessionFailed, match="not linked"):
                async with nodes.session():
                    raise AssertionError("a session began")
            assert await asyncio.to_thread(nodes.transports[FIRST].receive, 5000), "the close of the first session"
            assert nodes.transports[FIRST].receive(200) is None

    run(test())


def test_no_prompt_leaves_the_instance(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes:
            first, last = nodes.instance.stages
            elsewhere = msgspec.structs.replace(first, endpoints=only_tcp(nodes.transports[UNKNOWN_NODE].endpoints))
            nodes.instance = msgspec.structs.replace(nodes.instance, stages=(elsewhere, last))
            with pytest.raises(SessionFailed, match="does not belong to node"):
                async with nodes.session():
                    raise AssertionError("a session began")
            assert nodes.transports[UNKNOWN_NODE].receive(200) is None

    run(test())


def test_opening_ends_once_its_instance_is_lost(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes:
            nodes.transports[FIRST].close()

            async def opened() -> None:
                async with nodes.session():
                    raise AssertionError("a session began")

            opening = asyncio.create_task(opened())
            await asyncio.sleep(0)  # the task takes its first step
            assert nodes.plane.sessions
            nodes.plane.fail_where(lambda instance: True, "node first is gone")
            async with asyncio.timeout(OPEN_TIMEOUT_S / 2):
                with pytest.raises(SessionFailed, match="node first is gone"):
                    await opening

    run(test())


def test_error_of_sending_an_opening_is_raised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes:
            failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            failed.set_exception(zmq.ZMQError(zmq.ENOTSOCK))
            monkeypatch.setattr(AsyncTransport, "send", lambda *frame, **how: failed)
            with pytest.raises(zmq.ZMQError):
                async with nodes.session():
                    raise AssertionError("a session began")

    run(test())


def test_opening_larger_than_a_frame_is_refused_at_once(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes:
            nodes.prompt = ((1 << 31) - 1,) * MAX_PROMPT
            with pytest.raises(SessionFailed, match=r"has 13\d{5} bytes, and a frame holds 1048512; shorten") as caught:
                async with nodes.session():
                    raise AssertionError("a session began")
            assert caught.value.code is FailureCode.TOO_LARGE

    run(test())


def test_close_to_an_unlinked_node_is_no_error(folder: Path) -> None:
    async def test() -> None:
        async with cluster(folder) as nodes, nodes.session():
            nodes.accesses[OWNER].allowlist.remove(nodes.accesses[FIRST].pair.node_id)

    run(test())


def test_standalone_gateway_listens_on_ipc_only(folder: Path) -> None:
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
def test_unreadable_failure_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError, match="payload"):
        _failure(np.frombuffer(payload, np.uint8))
