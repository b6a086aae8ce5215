"""Server-sent events, and the end of work for a client that disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive, Send

SEND_TIMEOUT_S = 60.0  # a client that reads nothing for so long counts as disconnected
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientDisconnected(Exception):
    """Nothing reads the response any more."""


class EventStream:
    """The response of one stream of server-sent events. It begins with the first bytes that are sent."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send events; without `more` the stream ends. Raises ClientDisconnected if the client does not read."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                if not self.begun:
                    self.begun = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientDisconnected from None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it when the client disconnects. Raises what `work` raises."""

    async def disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work), group.create_task(disconnect())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as group:
        if not isinstance(group.exceptions[0], ClientDisconnected):
            raise group.exceptions[0] from None
