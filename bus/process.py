"""How a process of a node begins and ends: its settings, its log, and dying with its supervisor.

The supervisor holds the write end of every child's standard input; when it is gone, however it went, the child
reads end-of-file and kills its own process group. That works on every Unix, and for the child's children too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bus.actor import Actor
from bus.client import BusClient
from common.config import NodeConfig, read_config
from common.text_safety import LogFormatter

CANNOT_START = 78  # EX_CONFIG: starting again will not help; the log's last line says why
ADDRESS_VARIABLE = "EXOBUS_RUN_DIR"
NAME_VARIABLE = "EXOBUS_ACTOR"
_MACOS_FILES = 10240


class CannotStart(Exception):
    """This process can never run with these settings; the message says what to change."""


def actor_name(role: str) -> str:
    """The name that the supervisor gave this process; its role where it gave none."""
    return os.environ.get(NAME_VARIABLE, role)


def begin(name: str) -> NodeConfig:
    """Read the settings that the supervisor left, set up logging and tie this process to the supervisor."""
    allow_many_files()
    log_to(logging.StreamHandler(sys.stderr), name)
    threading.Thread(target=_die_with_supervisor, daemon=True, name="supervisor-watch").start()
    return read_config(Path(os.environ[ADDRESS_VARIABLE]))


def log_to(handler: logging.Handler, name: str) -> None:
    """Have everything logged there, under a process's name."""
    handler.setFormatter(LogFormatter(name))
    logging.basicConfig(level=os.environ.get("EXOBUS_LOG", "INFO").upper(), handlers=[handler])


def allow_many_files() -> None:
    """Have as many open files as the system grants: a crowd of strangers' connections must not use them up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (most, _MACOS_FILES):
        with suppress(OSError, ValueError):  # macOS says that there is no limit, and takes 10,240
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return


def bound_memory(most_bytes: int) -> None:
    """Have the system refuse this process more address space, where it does so (not on macOS)."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


def _die_with_supervisor() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def run_actor(
    make: Callable[[NodeConfig, BusClient], Actor], name: str, hopeless: type[Exception] = CannotStart
) -> None:
    """Run one actor until it is told to stop. Exits with CANNOT_START and a last log line where it never can.

    That is CannotStart, or an exception of a lower package that means the same for this actor: `hopeless`.
    """
    config = begin(name)

    async def main() -> None:
        bus = BusClient(config.run_path, config.node_id, name)
        await make(config, bus).run()

    try:
        asyncio.run(main())
    except (CannotStart, hopeless) as error:
        logging.getLogger(name).error("%s", error)
        raise SystemExit(CANNOT_START) from None
