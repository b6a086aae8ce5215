"""Request bodies, bounded in size and time, each by itself and all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from cluster.failures import FailureCode
from gateway.core.errors import unavailable
from gateway.http.errors import CLOSE, HttpError


@dataclass(frozen=True)
class BodyLimits:
    """How large one body may be (`most`), and those of all requests at a time (`together`), in bytes.

    The first `free` bytes of each do not count, so that large bodies cannot keep small ones out. A body may take
    `timeout_s` seconds, plus the time that its bytes need at `bytes_per_s`.
    """

    most: int
    together: int = 32 << 20
    free: int = 64 << 10
    timeout_s: float = 10.0
    bytes_per_s: int = 64 << 10


@dataclass(slots=True)
class Body:
    """One request's body, and how many bytes of it count."""

    data: bytearray = field(default_factory=bytearray)
    counted: int = 0


class RequestBodies:
    """Reads bodies within limits."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """Yield a request's body. It counts until the block ends, because what is made of it has a similar size.

        Raises HttpError if it is too large or too slow, GatewayError if all bodies together are too large.
        """
        if int(request.headers.get("content-length", 0)) > self._limits.most:
            raise self._too_large()
        body = Body()
        try:
            await self._read_into(body, request)
            yield body.data
        finally:
            self._held -= body.counted

    async def _read_into(self, body: Body, request: Request) -> None:
        try:
            await self._read_in_time(body, request)
        except TimeoutError:
            sentence = "the body did not come in time; send it faster"
            raise HttpError(408, sentence, code=FailureCode.TIMEOUT, headers=CLOSE) from None

    async def _read_in_time(self, body: Body, request: Request) -> None:
        limits = self._limits
        deadline = asyncio.get_running_loop().time() + limits.timeout_s
        async with asyncio.timeout_at(deadline) as timeout:
            async for part in request.stream():
                body.data += part
                size = len(body.data)
                self._count(body, max(0, size - limits.free))
                if size > limits.most:
                    raise self._too_large()
                timeout.reschedule(deadline + size / limits.bytes_per_s)

    def _count(self, body: Body, counted: int) -> None:
        self._held += counted - body.counted
        body.counted = counted
        if counted and self._held > self._limits.together:
            raise unavailable(FailureCode.BUSY, "there are too many large requests at this time; try again soon")

    def _too_large(self) -> HttpError:
        return HttpError(413, f"the body is larger than {self._limits.most >> 20} MiB; send less")
