"""Whole nodes for tests and benchmarks: real `exobus node` processes on loopback, stopped by process id.

They are nodes of a cluster of this test run, unless they are standalone.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster.join_code import JoinCode, new_join_code
from common.config import NodeConfig, read_config
from models.cache import default_cache_root

ROOT = Path(__file__).resolve().parent.parent.parent
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
CODE = new_join_code("test")
_URL = re.compile(r"http://127\.0\.0\.1:\d+")


class NodeProcess:
    """One `exobus node`. Its output is read on a thread; every wait for a line has a deadline."""

    def __init__(
        self,
        data_dir: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        wrapped: Callable[..., list[str]] = lambda *command: list(command),
        *,
        start: Sequence[str] = (sys.executable, "-m", "cli"),
        folder: Path = ROOT,
    ) -> None:
        """Start the node in `folder` by the command `start`, `wrapped` in another command that becomes it."""
        self.data_dir = data_dir
        self.output: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            wrapped(*start, "node", "--data-dir", str(data_dir), *arguments),
            cwd=folder,
            env={**clean_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.api = ""

    @property
    def config(self) -> NodeConfig:
        """The settings of the running node."""
        return read_config(Path((self.data_dir / "run").read_text()))

    @property
    def join_endpoint(self) -> str:
        """The address where new nodes join, as `--peer` takes it. Only of a node that is ready."""
        config = self.config
        return f"{config.host}:{config.join_port}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, wanted: Callable[[str], bool], within_s: float = READY_TIMEOUT_S) -> str:
        """Wait for the next line of output that is `wanted`. Fails with all output if the node or the time ends."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError("the node did not write the line; it wrote:\n" + "\n".join(self.output))
            self.output.append(line)
            if wanted(line):
                return line

    def line_with(self, text: str, within_s: float = READY_TIMEOUT_S) -> str:
        """Return the line that contains `text`, which may have come already. Fails as `line` does."""
        found = next((line for line in self.output_so_far() if text in line), None)
        return found or self.line(lambda line: text in line, within_s)

    def output_so_far(self) -> list[str]:
        """Return all lines of output that came until now."""
        while not self._lines.empty():
            if (line := self._lines.get()) is None:
                self._lines.put(None)  # a later wait for a line should end as well
                break
            self.output.append(line)
        return self.output

    def ready(self) -> str:
        """Wait until the node is ready, and return the API's address."""
        found = _URL.search(self.line(lambda line: _URL.search(line) is not None))
        assert found is not None
        self.api = found.group()
        return self.api

    def get(self, path: str) -> Any:
        """Get JSON from the gateway."""
        answer = httpx.get(self.api + path, timeout=30.0)
        answer.raise_for_status()
        return answer.json()

    def children(self) -> list[psutil.Process]:
        """Return all processes of the node but the supervisor."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGINT) -> float:
        """End the node as a user would, and return the seconds that it took. Kills what is left after ten seconds."""
        if self.process.poll() is not None:
            self._reader.join(STOP_TIMEOUT_S)
            return 0.0
        begun = time.monotonic()
        children = self.children()
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        finally:
            for process in (psutil.Process(self.process.pid), *children) if self.process.poll() is None else children:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()
            self._reader.join(STOP_TIMEOUT_S)
        return time.monotonic() - begun


def free_udp_port() -> int:
    """Return a port for beacons that is free on this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables that configure a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EXOBUS_")}


def unmeasured_cache(folder: Path) -> Path:
    """Make a cache with the models of this machine and without its measurements, so that a node measures anew."""
    folder.mkdir()
    for entry in default_cache_root().iterdir():
        if not entry.name.startswith("."):  # locks and measurements
            (folder / entry.name).symlink_to(entry)
    return folder


@contextmanager
def nodes(
    *names: str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    code: JoinCode | None = CODE,
) -> Iterator[list[NodeProcess]]:
    """Run nodes in folders of their own, with the machine's model cache, and wait until they are ready.

    They share a join code and find each other by beacons on a port of their own; without a code each is standalone.
    """
    with tempfile.TemporaryDirectory() as folder:
        beacons = str(free_udp_port())
        joining = {"EXOBUS_JOIN": code.text()} if code else {}
        settings = {"EXOBUS_CACHE": str(default_cache_root()), **joining, **(environment or {})}
        ports = ["--discovery-port", beacons, "--api-port", "0", "--bus-port", "0", "--join-port", "0"]
        started: list[NodeProcess] = []
        try:
            for name in names:
                started.append(NodeProcess(Path(folder) / name, ["--name", name, *ports, *arguments], settings))
            for node in started:
                node.ready()
            yield started
        finally:
            for node in started:
                node.stop()
