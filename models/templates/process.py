"""The parent's side of one `models.templates.child`: starts it on demand, exchanges messages, kills and replaces it.

Knows deadlines and exit statuses, but not the content of the messages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

from common.python_child import PACKAGE_ROOT, child_environment, module_command
from models.errors import TemplateError, TemplateUnavailable
from models.templates.chat_template import MAX_RENDERED_CHARACTERS
from models.templates.child import LENGTH, MEMORY_BYTES, OUT_OF_MEMORY

START_TIMEOUT_S = 10.0
END_TIMEOUT_S = 1.0  # after its pipe is closed; then it is killed
MAX_REPLY_BYTES = 4 * MAX_RENDERED_CHARACTERS + 1024  # as UTF-8

_COMMAND = tuple(module_command("models.templates.child"))
# What Python needs to find itself, its packages and the time zone. A template sees no other variable.
_INHERITED = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TZ")

logger = logging.getLogger(__name__)


class TemplateProcess:
    """One process at a time, which serves one request at a time. Each reply may take `timeout_s` seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._started: asyncio.Task[Process] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pid(self) -> int:
        """The process id, or 0 while no process is ready."""
        process = _started_process(self._started)
        return process.pid if process and process.returncode is None else 0

    def start(self) -> None:
        """Start the process in the background unless there is one."""
        failed = self._started and self._started.done() and _started_process(self._started) is None
        if self._started is None or failed:
            self._started = asyncio.create_task(_start())

    async def close(self) -> None:
        """End the process; none takes its place."""
        self._closed = True
        self._end()
        await asyncio.gather(*self._ending)

    async def request(self, message: bytes) -> bytes | None:
        """Send a message and return the reply, or None if the process died for no known reason.

        Without a reply a new process takes its place. Raises TemplateError if it takes too long or too much memory,
        and TemplateUnavailable if it does not start.
        """
        process = await self._ready()
        reply = None
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await _exchange(process, message)
        except TimeoutError:
            raise self._too_long() from None
        except (asyncio.IncompleteReadError, ConnectionError):
            self._raise_for_status(await _exit_status(process))
        finally:
            if reply is None:
                self.replace()
        return reply

    def replace(self) -> None:
        """Kill the process and start another one, both in the background."""
        self._end()
        if not self._closed:
            self.start()

    async def _ready(self) -> Process:
        if self._closed:
            raise TemplateUnavailable("this gateway is stopping; try again")
        self.start()
        assert self._started is not None, "start starts it"
        return await asyncio.shield(self._started)  # a cancelled request leaves the process to the next one

    def _end(self) -> None:
        if self._started:
            task = asyncio.create_task(_kill_started(self._started))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        self._started = None

    def _raise_for_status(self, status: int) -> None:
        """Raise TemplateError if the exit status shows that the template ran into a limit; log any other status."""
        if status == OUT_OF_MEMORY:
            limit = f"{MEMORY_BYTES >> 20} MiB of memory"
            raise TemplateError(f"the model's chat template needs more than {limit}; use another model")
        if status == -signal.SIGXCPU:
            raise self._too_long()
        logger.warning("a process that renders chat templates ended with status %d", status)

    def _too_long(self) -> TemplateError:
        return TemplateError(f"the model's chat template took longer than {self._timeout_s:g} s; use another model")


async def _start() -> Process:
    """Start a process and wait until it is ready. Raises TemplateUnavailable."""
    environment = child_environment({name: os.environ[name] for name in _INHERITED if name in os.environ})
    try:
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, stdin=PIPE, stdout=PIPE, cwd=PACKAGE_ROOT, env=environment
        )
        await _wait_until_ready(process)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        logger.warning("a process that renders chat templates did not start: %r", error)
        sentence = "the process that renders chat templates did not start; see the gateway's log on the node"
        raise TemplateUnavailable(sentence) from error
    return process


async def _wait_until_ready(process: Process) -> None:
    """Read the empty message that a child sends once. Kills the process if it does not come."""
    ready = False
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            ready = await _read(process) == b""
    finally:
        if not ready:
            await _kill(process)


async def _exchange(process: Process, message: bytes) -> bytes:
    assert process.stdin is not None, "its input is a pipe"
    process.stdin.write(LENGTH.pack(len(message)) + message)
    await process.stdin.drain()
    return await _read(process)


async def _read(process: Process) -> bytes:
    """Read one message. Raises IncompleteReadError at end-of-file, and ConnectionError if it is too large."""
    assert process.stdout is not None, "its output is a pipe"
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    if length > MAX_REPLY_BYTES:
        raise ConnectionError(f"a reply of {length} bytes")
    return await process.stdout.readexactly(length)


async def _exit_status(process: Process) -> int:
    """Wait for the exit status of a process that closed its pipe; kill it if it does not end soon."""
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            return await process.wait()
    except TimeoutError:
        return await _kill(process)


async def _kill(process: Process) -> int:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    return await process.wait()


async def _kill_started(started: asyncio.Task[Process]) -> None:
    started.cancel()
    await asyncio.wait([started])
    if process := _started_process(started):
        await _kill(process)


def _started_process(started: asyncio.Task[Process] | None) -> Process | None:
    """Return the process that a task has started, or None if it has not, or failed."""
    done = started and started.done() and not started.cancelled() and started.exception() is None
    return started.result() if started and done else None
