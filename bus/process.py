"""How a process of a node starts and ends: its settings, its log, and its end if the supervisor dies.

The supervisor holds the write end of every child's standard input. When it is gone, for whatever reason, the child
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

CANNOT_START = 78  # EX_CONFIG: a restart will not help; the last line of the log says why
ADDRESS_VARIABLE = "EXOBUS_RUN_DIR"
NAME_VARIABLE = "EXOBUS_ACTOR"
_MACOS_FILES = 10240


class CannotStart(Exception):
    """This process cannot run with these settings; the message says what to change."""


def actor_name(role: str) -> str:
    """Return the name that the supervisor gave this process, or its role if it gave none."""
    return os.environ.get(NAME_VARIABLE, role)


def begin(name: str) -> NodeConfig:
    """Read the settings that the supervisor wrote, set up logging, and die with the supervisor from now on."""
    allow_many_files()
    log_to(logging.StreamHandler(sys.stderr), name)
    threading.Thread(target=_die_with_supervisor, daemon=True, name="supervisor-watch").start()
    return read_config(Path(os.environ[ADDRESS_VARIABLE]))


def log_to(handler: logging.Handler, name: str) -> None:
    """Send all log records to this handler, with the process's name."""
    handler.setFormatter(LogFormatter(name))
    logging.basicConfig(level=os.environ.get("EXOBUS_LOG", "INFO").upper(), handlers=[handler])


def allow_many_files() -> None:
    """Raise the limit of open files as far as the system allows: unknown clients must not exhaust it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (most, _MACOS_FILES):
        with suppress(OSError, ValueError):  # macOS reports no limit, but accepts 10,240
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return


def bound_memory(most_bytes: int) -> None:
    """Limit the address space of this process. macOS ignores it."""
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
    """Run one actor until it is stopped. Exits with CANNOT_START and a last log line if it cannot run.

    It cannot run if it raises CannotStart, or `hopeless`: an exception of a lower package that means the same.
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
