"""`gateway.http.event_stream`: work ends with its client, and its failures pass through."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from gateway.http.event_stream import ClientDisconnected, EventStream, while_connected

WITHIN_S = 5.0


async def never() -> Message:
    """Receive nothing from a client that stays connected."""
    await asyncio.Event().wait()
    raise AssertionError("an event that is never set was set")


def run(receive: object, work: object) -> None:
    """Run work while a client is connected."""

    async def main() -> None:
        async with asyncio.timeout(WITHIN_S):
            await while_connected(receive, work)  # type: ignore[arg-type]  # both are coroutines of the tests here

    asyncio.run(main())


def test_work_runs_to_its_end() -> None:
    done = []

    async def work() -> None:
        done.append(True)

    run(never, work())
    assert done == [True]


def test_failure_of_the_work_is_raised_unchanged() -> None:
    async def work() -> None:
        raise ValueError("a failure")

    with pytest.raises(ValueError, match="a failure"):
        run(never, work())


def test_disconnect_cancels_the_work() -> None:
    cancelled = []

    async def disconnected() -> Message:
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    run(disconnected, work())
    assert cancelled == [True]


def test_client_that_stops_reading_ends_the_work_quietly() -> None:
    async def work() -> None:
        raise ClientDisconnected

    run(never, work())


def test_stream_begins_with_its_first_bytes() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(dict(message))

    async def main() -> None:
        stream = EventStream(send)
        assert not stream.begun
        await stream.send(b"one")
        await stream.send(b"two", more=False)
        assert stream.begun

    asyncio.run(main())
    assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]
    assert [message["more_body"] for message in sent[1:]] == [True, False]
