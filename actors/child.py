"""One child process of the supervisor: how it is started, watched and ended. Knows nothing of what it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from actors.restart_backoff import RestartBackoff
from bus.process import ADDRESS_VARIABLE, NAME_VARIABLE
from common.config import NodeConfig

STOP_WITHIN_S = 2.0  # then the process group is killed


class Child:
    """One process of the node, with its module and the history of its deaths."""

    def __init__(self, name: str, module: str, config: NodeConfig, log: Path, threads: int = 1) -> None:
        self.name = name
        self.restarts = RestartBackoff()
        self.wanted = True
        self.process: asyncio.subprocess.Process | None = None
        self.known: asyncio.Future[int] = asyncio.get_running_loop().create_future()  # its pid, once the hub met it
        self._module = module
        self._config = config
        self._log = log
        self._threads = threads

    async def live(self) -> tuple[int, float]:
        """Run the process once: its exit status and how long it lived, in seconds."""
        begun = time.monotonic()
        with open(self._log, "ab", buffering=0) as log:  # noqa: ASYNC230 - a local file, once a start
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=asyncio.subprocess.PIPE,  # its end tells the child that we are gone
                stdout=log,
                stderr=log,
                env=_environment(self._config, self.name, self._threads),
                start_new_session=True,
            )
        return await self.process.wait(), time.monotonic() - begun

    async def stop(self) -> None:
        """Ask it to end, and kill its group where it does not."""
        self.wanted = False
        process = self.process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(process.wait()), STOP_WITHIN_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _environment(config: NodeConfig, name: str, threads: int) -> Mapping[str, str]:
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    named = {ADDRESS_VARIABLE: config.run_dir, NAME_VARIABLE: name, "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **dict.fromkeys(pools, str(threads)), **named}


def last_sentence(log: Path) -> str:
    """The last line of a log, without its date, level and logger."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["no word in its log"]
    return lines[-1].split(": ", 1)[-1]
