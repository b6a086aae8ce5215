"""llama.cpp's own benchmark programs, run once for each call. Rates are tokens per second."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.machine import pin

RUN_TIMEOUT_S = 180.0
LISTEN_TIMEOUT_S = 10.0


class LlamaCpp:
    """One model under llama.cpp: on one pinned thread, or on RPC servers of one pinned thread each."""

    def __init__(self, programs: Path, model: Path, servers: Sequence[str] = ()) -> None:
        self._programs = programs
        self._servers = servers
        self._common = ["--model", str(model), "--threads", "1", "--n-gpu-layers", "99"]
        if servers:
            self._common += ["--rpc", ",".join(servers)]

    def prefill_rate(self, prompt: int) -> float:
        """Measure a prompt of so many tokens, after the program's own warm-up."""
        return self._bench("--n-prompt", prompt, "--n-gen", 0)

    def decode_rate(self, prompt: int, tokens: int) -> float:
        """Measure one stream of so many tokens after a prompt."""
        return self._bench("--n-prompt", 0, "--n-depth", prompt, "--n-gen", tokens)

    def streams_rate(self, streams: int, prompt: int, tokens: int) -> float:
        """Measure several streams in one batch, all tokens together, each after a prompt."""
        sizes = ["-npp", prompt, "-ntg", tokens, "-npl", streams, "--ctx-size", streams * (prompt + tokens)]
        output = self._run("llama-batched-bench", *self._devices(","), *sizes, "--output-format", "jsonl")
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return float(rows[-1]["speed_tg"])

    def _bench(self, *sizes: object) -> float:
        output = self._run("llama-bench", *self._devices("/"), *sizes, "--repetitions", 1, "--output", "json")
        rows: list[dict[str, Any]] = json.loads(output)
        return float(rows[-1]["avg_ts"])

    def _devices(self, separator: str) -> list[str]:
        names = [f"RPC{index}" for index in range(len(self._servers))]
        return ["--device", separator.join(names)] if names else []

    def _run(self, program: str, *arguments: object) -> str:
        """Return the standard output of a program. It is pinned if it computes itself, without RPC servers."""
        command = [str(self._programs / program), *self._common, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            if not self._servers:
                pin(process.pid, 0)
            output, _ = process.communicate(timeout=RUN_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, f"{program} ended with {process.returncode}"
        return output


@contextmanager
def rpc_servers(programs: Path, count: int) -> Iterator[list[str]]:
    """Run llama.cpp's RPC servers on loopback, each with one thread on a core of its own. Yields their addresses."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        addresses = []
        for core in range(count):
            port = free_port()
            command = [str(programs / "ggml-rpc-server"), "--threads", "1", "--port", str(port)]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            pin(processes[-1].pid, core)
            wait_for_port(port)
            addresses.append(f"127.0.0.1:{port}")
        yield addresses
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a free tcp port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    """Wait until a server listens. Raises OSError after ten seconds."""
    deadline = time.monotonic() + LISTEN_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
