"""Whole nodes for tests and benchmarks: real `exobus node` processes on loopback, stopped by process id.

They are nodes of a cluster that this test run makes up, unless they are to stand alone.
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
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
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
    ) -> None:
        """Start it, with its command `wrapped` in another that becomes it."""
        self.data_dir = data_dir
        self.output: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            wrapped(sys.executable, "-m", "cli", "node", "--data-dir", str(data_dir), *arguments),
            cwd=ROOT,
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
        """Where others knock, as `--peer` takes it. Only of a node that is ready."""
        config = self.config
        return f"{config.host}:{config.join_port}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, wanted: Callable[[str], bool], within_s: float = READY_WITHIN_S) -> str:
        """The next line of output that is `wanted`. Fails with all output at the end of it, or of the time."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError("the node never said it; it said:\n" + "\n".join(self.output))
            self.output.append(line)
            if wanted(line):
                return line

    def says(self, text: str, within_s: float = READY_WITHIN_S) -> str:
        """The line with `text` in it, which may have come already. Fails as `line` does."""
        said = next((line for line in self.so_far() if text in line), None)
        return said or self.line(lambda line: text in line, within_s)

    def so_far(self) -> list[str]:
        """All lines of output that came until now."""
        while not self._lines.empty():
            if (line := self._lines.get()) is None:
                self._lines.put(None)  # whoever waits for a line should know that none will come
                break
            self.output.append(line)
        return self.output

    def ready(self) -> str:
        """Wait for the screen with the API's address, and return that."""
        found = _URL.search(self.line(lambda line: _URL.search(line) is not None))
        assert found is not None
        self.api = found.group()
        return self.api

    def get(self, path: str) -> Any:
        """The JSON that the gateway answers."""
        answer = httpx.get(self.api + path, timeout=30.0)
        answer.raise_for_status()
        return answer.json()

    def children(self) -> list[psutil.Process]:
        """All processes of the node but the supervisor."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGINT) -> float:
        """End the node as a user would; returns the seconds that it took. Kills what is left after ten."""
        if self.process.poll() is not None:
            self._reader.join(STOP_WITHIN_S)
            return 0.0
        begun = time.monotonic()
        children = self.children()
        self.process.send_signal(number)
        try:
            self.process.wait(STOP_WITHIN_S)
        finally:
            for process in (psutil.Process(self.process.pid), *children) if self.process.poll() is None else children:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()
            self._reader.join(STOP_WITHIN_S)
        return time.monotonic() - begun


def free_udp_port() -> int:
    """A port for beacons that nobody on this machine uses now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """The environment without what would tell a node how to be."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EXOBUS_")}


@contextmanager
def nodes(
    *names: str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    code: JoinCode | None = CODE,
) -> Iterator[list[NodeProcess]]:
    """Ready nodes in folders of their own, with the machine's model cache.

    They have this join code, and find each other by beacons on a port of their own; without a code each stands alone.
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
