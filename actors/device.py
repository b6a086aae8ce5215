"""What this machine offers, for the node's record: measured once by a child process, memory read afresh each time."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import platform
import sys
import uuid
from contextlib import suppress

import msgspec
import psutil

from bus.client import RequestError
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from common.config import NodeConfig

logger = logging.getLogger(__name__)

MEASURE_WITHIN_S = 90.0
MEMORY_STEP = 64 << 20  # bytes: a record changes when something worth telling does


class Device:
    """The measuring child and its result."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._child: asyncio.subprocess.Process | None = None
        self._measuring: asyncio.Task[DeviceCapabilities] | None = None

    def begin(self) -> None:
        """Start to measure."""
        self._measuring = asyncio.create_task(self._measure())

    async def end(self) -> None:
        """Stop measuring and wait for the child's end."""
        if self._measuring:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)

    async def measured(self) -> DeviceCapabilities:
        """The machine with its engine chosen. Raises RequestError where no engine works."""
        assert self._measuring is not None, "begin() comes first"
        return await asyncio.shield(self._measuring)

    def now(self, nodes_here: int) -> DeviceCapabilities:
        """What is known at this moment; before the measuring is over only memory.

        Nodes of one machine, `nodes_here` of them, share out what is free.
        """
        task = self._measuring
        known = task is not None and task.done() and not task.cancelled() and task.exception() is None
        capabilities = task.result() if task is not None and known else DeviceCapabilities()
        memory = psutil.virtual_memory()
        offer = usable(memory.available // nodes_here, self._config.memory)
        return msgspec.structs.replace(capabilities, memory_total=memory.total, memory_available=offer)

    def threads(self, nodes_here: int) -> int:
        """Threads for an engine: what was asked for, or this node's share of the cores but one.

        One is left to everything else: a matrix library whose spinning threads have to share a core is many
        times slower than one with a thread less.
        """
        cores = psutil.cpu_count(logical=False) or 1
        return self._config.threads or max(cores // nodes_here - 1, 1)

    async def _measure(self) -> DeviceCapabilities:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "actors.device_probe",
            self._config.engine, self._config.precision, self._config.cache_dir,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(MEASURE_WITHIN_S):
                said, complaint = await self._child.communicate()
        except TimeoutError:
            raise RequestError(
                FailureCode.NO_ENGINE, f"the engines were not measured within {MEASURE_WITHIN_S:g} s; pass --engine"
            ) from None
        finally:
            with suppress(ProcessLookupError):
                self._child.kill()
            await self._child.wait()
        if self._child.returncode:
            sentence = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["measuring the engines failed"]
            raise RequestError(FailureCode.NO_ENGINE, sentence[0])
        return msgspec.json.decode(said, type=DeviceCapabilities)


def machine_id() -> str:
    """The same for all processes of this machine, and hardly for those of another: from its name and address."""
    return hashlib.sha256(f"{platform.node()} {uuid.getnode()}".encode()).hexdigest()[:16]


def usable(available: int, limit: int) -> int:
    """Bytes to offer: what is free, at most `limit` (0: no limit), in steps that do not flicker."""
    offered = min(available, limit) if limit else available
    return offered - offered % MEMORY_STEP if offered > MEMORY_STEP else offered
