"""Request bodies, bounded in size and time, each by itself and all together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from cluster.failures import FailureCode
from gateway.core.errors import unavailable
from gateway.http.errors import CLOSE, HttpError


@dataclass(frozen=True)
class BodyLimits:
    """How large one body may be (`most`) and all that arrive at a time (`together`), in bytes.

    A body may take `timeout_s` seconds, plus the time that its bytes need at `bytes_per_s`.
    """

    most: int
    together: int = 256 << 20
    timeout_s: float = 10.0
    bytes_per_s: int = 64 << 10


class RequestBodies:
    """Reads bodies within limits."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """Return a request's body. Raises HttpError if it is too large or too slow, GatewayError if too many arrive."""
        if int(request.headers.get("content-length", 0)) > self._limits.most:
            raise self._too_large()
        body = bytearray()
        try:
            await self._read_into(body, request)
        except TimeoutError:
            sentence = "the body did not come in time; send it faster"
            raise HttpError(408, sentence, code=FailureCode.TIMEOUT, headers=CLOSE) from None
        finally:
            self._held -= len(body)
        return bytes(body)

    async def _read_into(self, body: bytearray, request: Request) -> None:
        limits = self._limits
        deadline = asyncio.get_running_loop().time() + limits.timeout_s
        async with asyncio.timeout_at(deadline) as timeout:
            async for part in request.stream():
                body += part
                self._held += len(part)
                if len(body) > limits.most:
                    raise self._too_large()
                if self._held > limits.together:
                    sentence = "too many large requests come in at one time; try again soon"
                    raise unavailable(FailureCode.BUSY, sentence)
                timeout.reschedule(deadline + len(body) / limits.bytes_per_s)

    def _too_large(self) -> HttpError:
        return HttpError(413, f"the body is larger than {self._limits.most >> 20} MiB; send less")
