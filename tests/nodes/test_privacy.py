"""A node and a chat on a machine without a network: no file of a library in the home folder, and no DNS look-up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from common.privacy import TELEMETRY_OFF
from common.python_child import module_command
from models.catalogue import DEFAULT_MODEL
from tests.support.models import default_model_path
from tests.support.network.network_capture import Side
from tests.support.nodes import ROOT, NodeProcess, clean_environment, unmeasured_cache

PORTS = ("--api-port", "0", "--bus-port", "0", "--join-port", "0")


class NameServer:
    """A DNS server of a namespace that records requests and never replies."""

    def __init__(self, side: Side) -> None:
        self.requests: list[bytes] = []
        self._socket = side.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.bind(("127.0.0.1", 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while data := self._socket.recv(4096):
            self.requests.append(data)

    def close(self, side: Side) -> None:
        """Stop serving."""
        sender = side.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with sender, self._socket:
            sender.sendto(b"", ("127.0.0.1", 53))
            self._thread.join(10)


@contextmanager
def namespace() -> Iterator[Side]:
    """Make a network namespace with nothing but a loopback interface. Skips the test if the system makes none."""
    name = f"exobus-{os.getpid()}"
    if not shutil.which("ip") or os.geteuid():
        pytest.skip("network namespaces need root and `ip` (iproute2)")
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=20, check=False)
    if made.returncode:
        pytest.skip(f"this system makes no network namespace: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], timeout=20, check=True)
        yield Side(name, "127.0.0.1")
    finally:
        subprocess.run(["ip", "netns", "delete", name], timeout=20, check=True)


@contextmanager
def name_server(side: Side) -> Iterator[NameServer]:
    """Run the only name server of the processes of the namespace."""
    folder = Path("/etc/netns") / side.namespace
    folder.mkdir(parents=True)
    server = NameServer(side)
    try:
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        yield server
    finally:
        server.close(side)
        (folder / "resolv.conf").unlink()
        folder.rmdir()


def files(folder: Path, *caches: str) -> list[str]:
    """Return the files below a folder, without those in some folders of it."""
    found = (file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir())
    return [str(file) for file in found if not any(file.is_relative_to(cache) for cache in caches)]


@pytest.mark.parametrize("engine", ["onnx", "auto"])
def test_chat_leaves_no_file_and_resolves_nothing(tmp_path: Path, engine: str) -> None:
    """With `auto`, every installed engine is measured; tinygrad and MLX compile kernels and keep them."""
    kernels = (".cache/tinygrad", ".cache/exobus/zig-clang") if engine == "auto" else ()
    default_model_path()
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = {
        **{name: value for name, value in clean_environment().items() if name not in TELEMETRY_OFF},
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "EXOBUS_CACHE": str(unmeasured_cache(tmp_path / "cache")),
    }
    for folder in ("CACHE", "CONFIG", "DATA", "STATE"):
        environment.pop(f"XDG_{folder}_HOME", None)
    with namespace() as side, name_server(side) as server, ExitStack() as running:
        node = NodeProcess(tmp_path / "node", [*PORTS, "--engine", engine], environment, side.command)
        running.callback(node.stop)
        command = side.command(*module_command("cli", "run", DEFAULT_MODEL, "Hello", "--api", node.ready()))
        chat = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        node.stop()
        assert (chat.returncode, chat.stderr) == (0, "")
        assert files(home, *kernels) == []
        assert files(temporary, *(["mlx"] if engine == "auto" else [])) == []
        assert server.requests == []


def test_look_up_is_noticed() -> None:
    """This shows that the test above can fail."""
    with namespace() as side, name_server(side) as server:
        program = "import socket; socket.getaddrinfo('telemetry.example', 443)"
        subprocess.run(side.command(sys.executable, "-c", program), capture_output=True, timeout=60, check=False)
        assert any(b"telemetry" in request for request in server.requests)
