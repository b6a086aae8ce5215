"""A short-lived observer on the bus of a node here, for the duration of one command."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from bus.client import BusClient, RequestError
from cli.options import FAILED, UNREACHABLE, leave
from cluster.failures import FailureCode
from common.config import NodeConfig

BusCommand = Callable[[BusClient], Awaitable[None]]


def observe(config: NodeConfig, command: BusCommand) -> None:
    """Run `command` on the bus of a node. Ctrl-C ends it; a hub that does not answer means status 3."""
    try:
        asyncio.run(_observe(config, command))
    except KeyboardInterrupt:
        return
    except RequestError as error:
        leave(error.message, UNREACHABLE if error.code in (FailureCode.TIMEOUT, FailureCode.UNDELIVERABLE) else FAILED)


async def _observe(config: NodeConfig, command: BusCommand) -> None:
    bus = BusClient(config.run_path, config.node_id, f"cli-{os.getpid()}")
    await bus.start()
    try:
        await command(bus)
    finally:
        await bus.close()
