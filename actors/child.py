"""One child process of the supervisor: how it is started, watched and ended. Does not know what the process does."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from actors.restart_backoff import RestartBackoff
from bus.process import NAME_VARIABLE, RUN_DIR_VARIABLE
from common.config import NodeConfig
from common.python_child import child_environment, module_command

STOP_TIMEOUT_S = 2.0  # then the process group is killed
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Child:
    """One process of the node, with its module and its restarts."""

    def __init__(self, name: str, module: str, config: NodeConfig, log: Path, threads: int = 1) -> None:
        self.name = name
        self.restarts = RestartBackoff()
        self.stopped = False  # on request: it is not started again
        self.registered: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # its pid, from the hub
        self._process: asyncio.subprocess.Process | None = None
        self._module = module
        self._config = config
        self._log = log
        self._threads = threads

    async def run_once(self) -> tuple[int, float]:
        """Run the process to its end. Returns its exit status and its lifetime in seconds.

        Raises OSError if it cannot be started: no room for its log, no descriptors or no processes are left.
        """
        begun = time.monotonic()
        with open(self._log, "ab", buffering=0) as log:  # noqa: ASYNC230 - a local file, once a start
            self._process = await asyncio.create_subprocess_exec(
                *module_command(self._module),
                stdin=asyncio.subprocess.PIPE,  # its end shows the child that the supervisor is gone
                stdout=log,
                stderr=log,
                env=_environment(self._config, self.name, self._threads),
                start_new_session=True,
            )
        return await self._process.wait(), time.monotonic() - begun

    def kill(self) -> None:
        """Kill the process and its children at once, if it runs. It counts as a death."""
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Ask the process to end, and kill its process group if it does not end in time."""
        self.stopped = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), STOP_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            await process.wait()


def _environment(config: NodeConfig, name: str, threads: int) -> Mapping[str, str]:
    own = {RUN_DIR_VARIABLE: config.run_dir, NAME_VARIABLE: name, "TOKENIZERS_PARALLELISM": "false"}
    return {**child_environment(), **dict.fromkeys(THREAD_VARIABLES, str(threads)), **own}


def last_sentence(log: Path) -> str:
    """Return the last line of a log without its date, level and logger."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["its log is empty"]
    return lines[-1].split(": ", 1)[-1]
