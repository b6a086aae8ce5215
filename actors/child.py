"""One child process of the supervisor: how it is started, watched and ended. Does not know what the process does."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from actors.freeze_watch import Sight
from actors.restart_backoff import RestartBackoff
from bus.process import CANNOT_START, NAME_VARIABLE, RUN_DIR_VARIABLE
from common.config import NodeConfig
from common.python_child import child_environment, module_command

STOP_TIMEOUT_S = 2.0  # then the process group is killed
_READY = (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
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
        self._killed_because = ""

    @property
    def pid(self) -> int:
        """The id of the running process, or 0."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def run_once(self) -> tuple[int, float]:
        """Run the process to its end. Returns its exit status and its lifetime in seconds.

        Raises OSError if it cannot be started: no room for its log, no descriptors or no processes are left.
        """
        begun, self._killed_because = time.monotonic(), ""
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

    def why_ended(self, status: int) -> str:
        """Return why the process ended with this exit status."""
        if self._killed_because:
            return self._killed_because
        if status == CANNOT_START:
            return last_sentence(self._log)
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}, see {self._log}"

    def sight(self, silent_s: float) -> Sight | None:
        """Return what is seen of the process, of which nothing was heard for so long; None if none runs."""
        if not self.pid:
            return None
        try:
            process = psutil.Process(self.pid)
            with process.oneshot():
                times = process.cpu_times()
                return Sight(self.pid, silent_s, times.user + times.system, process.status() in _READY)
        except psutil.Error:
            return None

    def kill(self, why: str) -> None:
        """Kill the process and its children at once, if it runs. It counts as a death, for the reason `why`."""
        self._killed_because = why
        if self.pid:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

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
            self.kill("it did not end")
            await process.wait()


def _environment(config: NodeConfig, name: str, threads: int) -> Mapping[str, str]:
    own = {RUN_DIR_VARIABLE: config.run_dir, NAME_VARIABLE: name, "TOKENIZERS_PARALLELISM": "false"}
    return {**child_environment(), **dict.fromkeys(THREAD_VARIABLES, str(threads)), **own}


def last_sentence(log: Path) -> str:
    """Return the last line of a log without its date, level and logger."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["its log is empty"]
    return lines[-1].split(": ", 1)[-1]
