"""The chat servers that are compared: how each is installed, started on the default model and ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil

from models.catalogue import DEFAULT_MODEL
from tests.bench.ours import ring_of_nodes
from tests.bench.peers.checkpoint import write_checkpoint
from tests.bench.peers.commands import ROOT, AbsentError, venv
from tests.bench.peers.llamacpp import free_port
from tests.bench.peers.llamacpp_build import BENCHES, SERVER, llamacpp, sdist
from tests.support.models import default_model_path

START_TIMEOUT_S = 180.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
MLX = ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")
TINYGRAD = ("tinygrad==0.13.0", "ziglang==0.17.1")  # 0.14.0's wheel lacks a module that its server imports
NO_LIBRARY = "--config-settings=cmake.args=-DLLAMA_BUILD=OFF;-DLLAVA_BUILD=OFF"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its API's address, the model's name there, and its first processes."""

    api: str
    model: str
    processes: tuple[int, ...]

    def resident_mb(self) -> float:
        """Return the resident memory of its processes and all their children."""
        begun = [psutil.Process(pid) for pid in self.processes]
        tree = {process for first in begun for process in (first, *first.children(recursive=True))}
        return sum(process.memory_info().rss for process in tree) / 1e6


@contextmanager
def exobus(stages: int, precision: str) -> Iterator[Server]:
    """Run exobus nodes, and use the gateway of the first."""
    with ring_of_nodes(stages, precision) as (started, _):
        yield Server(f"{started[0].api}/v1", DEFAULT_MODEL, tuple(node.process.pid for node in started))


@contextmanager
def llama_server() -> Iterator[Server]:
    """Run llama.cpp's own server, with a slot for each of eight streams."""
    port = free_port()
    options = ["--threads", 1, "--parallel", 8, "--ctx-size", 8 * 1024, "--port", port, "--offline"]
    program = llamacpp(*BENCHES, SERVER) / SERVER
    with _process("llama-server", [program, "--model", default_model_path(), *options], port) as server:
        yield server


@contextmanager
def llama_cpp_python() -> Iterator[Server]:
    """Run the Python server of llama-cpp-python, on the libraries of the benchmark programs."""
    libraries = llamacpp(*BENCHES, SERVER)
    python = venv("llama-cpp-python", [f"llama-cpp-python[server] @ {sdist().absolute().as_uri()}", NO_LIBRARY])
    port = free_port()
    sizes = ["--n_threads", 1, "--n_threads_batch", 1, "--n_ctx", 1024, "--port", port]
    whole = ["--interrupt_requests", "false"]  # or a new question ends the running answer
    command = [python, "-m", "llama_cpp.server", "--model", default_model_path(), *sizes, *whole]
    with _process("llama-cpp-python", command, port, {"LLAMA_CPP_LIB_PATH": str(libraries)}) as server:
        yield server


@contextmanager
def mlx_lm() -> Iterator[Server]:
    """Run mlx_lm.server on the CPU, with the model's weights as float32, since it reads no GGUF."""
    python = venv("mlx", MLX)
    folder = (ROOT / "checkpoint").absolute()
    write_checkpoint(folder)
    port = free_port()
    command = [python, "-m", "mlx_lm", "server", "--model", folder, "--port", port]
    with _process("mlx_lm.server", command, port, ONE_THREAD | {"HF_HUB_OFFLINE": "1"}, str(folder)) as server:
        yield server


@contextmanager
def tinygrad_llm() -> Iterator[Server]:
    """Run tinygrad's chat server on its CPU device, which compiles with clang."""
    python = venv("tinygrad", TINYGRAD)
    port = free_port()
    starter = Path(__file__).with_name("tinygrad_server.py")
    command = [python, starter, "--model", default_model_path().absolute(), "--serve", port, "--max_context", 1024]
    with _process("tinygrad.llm", command, port, {"DEV": "CPU", "CC": _clang(python)}) as server:
        yield server


PEERS: dict[str, Callable[[], AbstractContextManager[Server]]] = {
    "exobus": partial(exobus, 1, "fast"),
    "exobus-2-nodes": partial(exobus, 2, "fast"),
    "exobus-exact": partial(exobus, 1, "exact"),
    "llama-server": llama_server,
    "llama-cpp-python": llama_cpp_python,
    "mlx_lm.server": mlx_lm,
    "tinygrad.llm": tinygrad_llm,
}


@contextmanager
def _process(
    name: str, command: list[object], port: int, environment: Mapping[str, str] | None = None, model: str = "default"
) -> Iterator[Server]:
    """Run a server until the end of the block, once it lists its models. Raises AbsentError if it never does."""
    log = ROOT / f"{name}-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {**os.environ, **(environment or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command)], stdout=output, stderr=output, env=settings, start_new_session=True
        )
        try:
            _wait_for_models(name, f"http://127.0.0.1:{port}/v1", process, log)
            yield Server(f"http://127.0.0.1:{port}/v1", model, (process.pid,))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_models(name: str, api: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AbsentError(f"{name} ended with {process.returncode} before it answered; see {log}")
        try:
            if httpx.get(f"{api}/models", timeout=5.0).is_success:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise AbsentError(f"{name} did not answer within {START_TIMEOUT_S:.0f} s; see {log}")


def _clang(python: Path) -> str:
    """Return the system's clang, or a script that runs the one of the ziglang wheel."""
    if found := shutil.which("clang"):
        return found
    script = ROOT / "zig-clang"
    script.write_text(f'#!/bin/sh\nexec "{python}" -m ziglang clang "$@"\n')
    script.chmod(0o700)
    return str(script.absolute())
