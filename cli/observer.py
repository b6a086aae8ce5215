"""A short-lived observer on a local node's bus, for the length of one command."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from bus.client import BusClient, RequestError
from cli.exit_codes import FAILED, UNREACHABLE, leave
from cli.local_nodes import choose_node
from cluster.failures import FailureCode
from common.config import NodeConfig

Look = Callable[[BusClient], Awaitable[None]]


def observe(node: str | None, look: Look) -> None:
    """Run `look` on the bus of a node here. Ctrl-C ends it; a hub that does not answer ends it with status 3."""
    config = choose_node(node)
    try:
        asyncio.run(_observe(config, look))
    except KeyboardInterrupt:
        return
    except RequestError as error:
        leave(error.message, UNREACHABLE if error.code in (FailureCode.TIMEOUT, FailureCode.UNDELIVERABLE) else FAILED)


async def _observe(config: NodeConfig, look: Look) -> None:
    bus = BusClient(config.run_path, config.node_id, f"cli-{os.getpid()}")
    await bus.start()
    try:
        await look(bus)
    finally:
        await bus.close()
