"""What this machine offers, for the node's record: measured once by a child process; memory is read each time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import msgspec

from bus.client import RequestError
from cluster.capabilities import DeviceCapabilities
from cluster.failures import FailureCode
from common.config import NodeConfig
from common.machine import Memory, cores, memory
from common.python_child import child_environment, module_command

logger = logging.getLogger(__name__)

PROBE = "actors.device_probe"
MEASURE_TIMEOUT_S = 90.0
MEMORY_STEP = 64 << 20  # bytes; a smaller change of memory is not worth a new record


class Device:
    """The measuring child process and its result."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._measuring: asyncio.Task[DeviceCapabilities] | None = None

    def start(self) -> None:
        """Start to measure."""
        self._measuring = asyncio.create_task(self._measure())

    async def stop(self) -> None:
        """Stop measuring, and wait until the child has ended."""
        if self._measuring:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)

    async def measured(self) -> DeviceCapabilities:
        """Wait for the measurement. Raises RequestError if no engine works here."""
        assert self._measuring is not None, "start() comes first"
        return await asyncio.shield(self._measuring)

    def failure(self) -> str:
        """Return why no engine can be used here, as one sentence; empty while that is not known, and if one can."""
        task = self._measuring
        failed = task is not None and task.done() and not task.cancelled() and task.exception()
        return str(failed or "")

    def now(self, nodes_here: int, reserved: int = 0, stages: int = 0) -> DeviceCapabilities:
        """Return what is known at this moment; before the measurement is over, only memory.

        The `nodes_here` nodes of this machine divide its free memory equally. This one's `stages` have reserved so many
        bytes of its memory for models.
        """
        task = self._measuring
        known = task is not None and task.done() and not task.cancelled() and task.exception() is None
        capabilities = task.result() if task is not None and known else DeviceCapabilities()
        seen = memory()
        return msgspec.structs.replace(
            capabilities,
            memory_total=seen.total,
            memory_available=self.offer(seen, nodes_here, reserved),
            stages_left=max(self._config.max_stages - stages, 0),
            precision=self._config.precision,
            quantize=self._config.quantize,
        )

    def offer(self, seen: Memory, nodes_here: int, reserved: int, freed: int = 0) -> int:
        """Return the bytes that a model may use of the machine's memory as `seen`, or once `freed` bytes more are free.

        They all count for this node: the stages of a ring end on all nodes of the machine.
        """
        share = min(seen.available // nodes_here + freed, seen.total // nodes_here)
        return usable(share, self._config.memory, reserved)

    def threads(self, nodes_here: int) -> int:
        """Return the threads of an engine: the configured number, or this node's share of the cores but one.

        One core is left to everything else: a matrix library with spinning threads that have to share a core is many
        times slower than one with a thread less.
        """
        return self._config.threads or max(cores() // nodes_here - 1, 1)

    async def _measure(self) -> DeviceCapabilities:
        config = self._config
        child = await asyncio.create_subprocess_exec(
            *module_command(PROBE, config.engine, config.precision, config.cache_dir, config.data_dir),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(),
        )
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_S):
                output, errors = await child.communicate()
        except TimeoutError:
            raise RequestError(
                FailureCode.NO_ENGINE, f"the engines were not measured within {MEASURE_TIMEOUT_S:g} s; pass --engine"
            ) from None
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        said = errors.decode(errors="replace").strip().splitlines()[-1:]
        if child.returncode:
            raise RequestError(FailureCode.NO_ENGINE, "".join(said) or "measuring the engines failed; pass --engine")
        if said:
            logger.warning("%s", said[0])
        return msgspec.json.decode(output, type=DeviceCapabilities)


def usable(available: int, limit: int, reserved: int) -> int:
    """Return the bytes to offer, in steps, so that the figure does not flicker.

    With those that are reserved they are at most `limit` (0: no limit).
    """
    offered = min(available, max(limit - reserved, 0)) if limit else available
    return offered - offered % MEMORY_STEP if offered > MEMORY_STEP else offered
