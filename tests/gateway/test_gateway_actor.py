"""`gateway.gateway_actor`: the gateway's process, its port, its start and its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx

from bus.process import CANNOT_START
from gateway.gateway_actor import announce
from tests.support.gateway.chat import PLAIN, post, raw_request
from tests.support.gateway.gateway_rig import (
    Rig,
    eventually,
    make_config,
    running_rig,
    start_gateway,
    stop_gateway,
)
from tests.support.gateway.text_stage import WITHIN_S


def test_taken_port_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = make_config(tmp_path, tmp_path, api_port=taken.getsockname()[1])
        process = start_gateway(config, tmp_path / "log")
        assert process.wait(WITHIN_S) == CANNOT_START
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert "--api-port" in last
    assert process.stdin is not None
    process.stdin.close()


def test_restarted_gateway_keeps_its_address(tmp_path: Path) -> None:
    with running_rig(tmp_path) as rig:
        rig.set_script("Hello", end=False, silent=True)
        with raw_request(rig, stream=True):
            assert eventually(lambda: len(rig.stage.openings) == 1)
            begun = time.monotonic()
            assert stop_gateway(rig.gateway) == 0
            assert time.monotonic() - begun < 2.0
        assert rig.all_closed()
        rig.gateway = start_gateway(rig.config, tmp_path / "again.log")
        try:
            assert eventually(lambda: _answers(rig.url))
        finally:
            stop_gateway(rig.gateway)


def test_known_address_is_not_written_again(tmp_path: Path) -> None:
    config = make_config(tmp_path, tmp_path)
    announce(config, 52415)
    first = (tmp_path / "api").stat()
    announce(config, 52415)  # as after a restart, when the disk may be full
    assert (tmp_path / "api").stat().st_ino == first.st_ino
    announce(config, 52416)
    assert config.api() == "http://127.0.0.1:52416"


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_gateway_ends_with_its_supervisor(tmp_path: Path) -> None:
    process = start_gateway(make_config(tmp_path, tmp_path), tmp_path / "log")
    assert eventually(lambda: (tmp_path / "api").exists())
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(WITHIN_S) == -signal.SIGKILL


def test_many_requests_leave_no_sessions_or_open_files(rig: Rig) -> None:
    def ask() -> None:
        results.append(post(rig, PLAIN, timeout=60).json()["choices"][0]["message"]["content"])

    results: list[str] = []
    for _ in range(2):
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        files = len(os.listdir(f"/proc/{rig.gateway.pid}/fd")) if Path("/proc").is_dir() else 0
    assert results == ["Hello world"] * 32
    assert files < 100
