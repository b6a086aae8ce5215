"""How a process of a node begins and ends: its settings, its log, and its end together with the supervisor.

The supervisor holds the write end of every child's standard input. When the supervisor ends, for whatever reason, the
child reads end-of-file and kills its own process group. That works on every Unix, and for the child's children too. A
child that is stopped at that moment reads nothing, so Linux is told to continue it.
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
from typing import NoReturn

from bus.actor import Actor
from bus.client import BusClient
from common.config import NodeConfig, read_config
from common.machine import continue_when_parent_ends
from common.text_safety import LogFormatter

CANNOT_START = 78  # EX_CONFIG: a restart will not help; the last line of the log says why
RUN_DIR_VARIABLE = "EXOBUS_RUN_DIR"
NAME_VARIABLE = "EXOBUS_ACTOR"
_MACOS_FILES = 10240


class CannotStart(Exception):
    """This process cannot run with these settings; the message says what to change."""


def actor_name(role: str) -> str:
    """Return the name that the supervisor gave this process, or its role if it gave none."""
    return os.environ.get(NAME_VARIABLE, role)


def begin(name: str) -> NodeConfig:
    """Set up logging, arrange to end with the supervisor, and return the node's settings."""
    allow_many_files()
    log_to(logging.StreamHandler(sys.stderr), name)
    continue_when_parent_ends()
    threading.Thread(target=_die_with_supervisor, daemon=True, name="supervisor-watch").start()
    return read_config(Path(os.environ[RUN_DIR_VARIABLE]))


def log_to(handler: logging.Handler, name: str) -> None:
    """Send all log records to this handler, under a process's name."""
    handler.setFormatter(LogFormatter(name))
    logging.basicConfig(level=os.environ.get("EXOBUS_LOG", "INFO").upper(), handlers=[handler])


def allow_many_files() -> int:
    """Raise the limit of open files as far as the system grants, so that foreign connections cannot use them up.

    Returns the limit.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (most, _MACOS_FILES):
        with suppress(OSError, ValueError):  # macOS reports no limit, and accepts 10,240
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            break
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if allowed == resource.RLIM_INFINITY else allowed


def bound_memory(most_bytes: int) -> None:
    """Limit the address space of this process, if the system supports that (macOS does not)."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


def _die_with_supervisor() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def end_without_finalizing() -> NoReturn:
    """Flush logs and streams, and end this process with status 0.

    For processes in which a library has computed on a thread: when such a thread ends, MLX frees what it has compiled,
    and takes the interpreter's lock for that. If the interpreter is being finalized at that moment, the process aborts.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_actor(make: Callable[[NodeConfig, BusClient], Actor], name: str, fatal: type[Exception] = CannotStart) -> None:
    """Run one actor until it is stopped. On CannotStart, log its message and exit with status CANNOT_START.

    `fatal` is another exception after which this actor cannot start either.
    """
    config = begin(name)

    async def main() -> None:
        bus = BusClient(config.run_path, config.node_id, name)
        await make(config, bus).run()

    try:
        asyncio.run(main())
    except (CannotStart, fatal) as error:
        logging.getLogger(name).error("%s", error)
        raise SystemExit(CANNOT_START) from None
