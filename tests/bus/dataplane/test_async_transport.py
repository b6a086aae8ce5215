"""`bus.dataplane.async_transport`: frames between a loop and a thread, and what is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from bus.dataplane.async_transport import AsyncTransport
from bus.dataplane.connections import NotLinked
from bus.dataplane.frames import Flag, Frame
from bus.dataplane.transport import Transport
from tests.support.bus import WITHIN_S, in_time
from tests.support.network.dataplane import linked_nodes

FRAME = Frame(Flag.TOKEN, 1, 2, position=5)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, WITHIN_S))


def test_frames_travel_in_both_directions(folder: Path) -> None:
    async def test() -> None:
        here, there = linked_nodes(2)
        loop, thread = AsyncTransport(folder, "loop", here), Transport(folder, "thread", there)
        try:
            for which, sender in ((0, ""), (1, here.own_id)):
                for number in (1, 2):
                    await loop.send(thread.endpoints[which], FRAME, b"abc")
                    received = await asyncio.to_thread(thread.receive, 5000)
                    assert received is not None
                    frame, payload, came_from = received
                    assert (frame.sequence, payload.tobytes(), came_from) == (number, b"abc", sender)
            thread.send(loop.endpoints[1], FRAME, np.array([7, 8], np.int32))
            frame, payload, came_from = await loop.receive()
            assert (frame.position, payload.tolist(), came_from) == (5, [7, 8], there.own_id)
        finally:
            thread.close()
            loop.close()

    run(test())


def test_invalid_messages_are_counted_and_dropped(folder: Path) -> None:
    async def test() -> None:
        loop = AsyncTransport(folder, "loop")
        good = FRAME._replace(sequence=1).pack()
        try:
            with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
                raw.setsockopt(zmq.LINGER, 2000)
                raw.connect(loop.endpoints[0])
                for parts in ([b"x"], [good, good], [b"x" * 64], [good], [good]):
                    raw.send_multipart(parts)
                assert (await loop.receive())[0].sequence == 1
                waiting = asyncio.create_task(loop.receive())
                expected = {"header size": 1, "parts": 1, "magic": 1, "replayed": 1}
                assert await asyncio.to_thread(in_time, lambda: dict(loop.dropped) == expected), loop.dropped
                waiting.cancel()
        finally:
            loop.close()

    run(test())


def test_send_to_an_unlinked_node_is_refused(folder: Path) -> None:
    async def test() -> None:
        here, there = linked_nodes(2)
        loop, thread = AsyncTransport(folder, "loop", here), Transport(folder, "thread", there)
        try:
            await loop.send(thread.endpoints[1], FRAME, b"")
            here.allowlist.remove(there.own_id)
            with pytest.raises(NotLinked, match="is not linked"):
                loop.send(thread.endpoints[1], FRAME, b"")
        finally:
            thread.close()
            loop.close()

    run(test())
