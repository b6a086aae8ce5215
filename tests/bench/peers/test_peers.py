"""`tests.bench.peers`: failing commands, programs that cannot be built, the client's sums, pinned threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.bench.figures import Figure, write
from tests.bench.machine import pin, pin_busiest
from tests.bench.peers import beside, chat, commands, llamacpp_build
from tests.bench.peers.__main__ import Row, measure
from tests.bench.peers.chat import Answer
from tests.bench.peers.commands import AbsentError
from tests.bench.peers.servers import Server
from tests.bench.plot import series

ONE_BUSY_THREAD = """
import threading, time
def compute():
    while time.thread_time() < 0.2:
        pass
    print("computed", flush=True)
    input()
threading.Thread(target=compute).start()
"""
WITH_A_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


pins = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no thread to a core")


def event(piece: dict[str, object]) -> bytes:
    return f"data: {json.dumps(piece)}\n\n".encode()


class Scripted(BaseHTTPRequestHandler):
    """Answers every question with three pieces of text, and a usage of five tokens."""

    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.end_headers()
        for text in ("", "a", "b", "c"):
            self.wfile.write(event({"choices": [{"delta": {"content": text}}]}))
        self.wfile.write(event({"choices": [], "usage": {"completion_tokens": 5}}) + b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def scripted(status: int = 200) -> Iterator[str]:
    """Run such a server, which answers with this status. Yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Scripted,), {"status": status}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextmanager
def started(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code, from its first line of output until it has read a line."""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.communicate(b"\n", timeout=30)


def test_failed_command_reports_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="failed: no such wheel; see"):
        commands.run([sys.executable, "-c", "print('no such wheel'); raise SystemExit(3)"], tmp_path / "log", 30)


def test_slow_command_is_ended_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(AbsentError, match="was not done in 4 s"):
        commands.run([sys.executable, "-c", WITH_A_CHILD], log, 4)
    child = int(log.read_text())
    _, alive = psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    assert not alive


def test_missing_compiler_is_reported_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llamacpp_build, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert beside.measure() == []
    printed = capsys.readouterr().out
    assert "no C++ compiler here; install g++ or clang" in printed
    assert all(name in printed for name in beside.NAMES)


def test_ratio_has_both_sides_and_its_limit() -> None:
    fast = dict.fromkeys(beside.TURNS, 100.0) | {"their decode": 50.0}
    exact = dict.fromkeys(beside.TURNS, 30.0)
    decode, prefill, *_ = beside.figures(fast, exact, beside.Limits(decode=200.0, prefill=400.0, streams=800.0))
    assert (decode.value, decode.baseline, decode.floor) == (2.0, 50.0, 4.0)
    assert "exact ×1.00" in decode.note
    assert (prefill.value, prefill.floor) == (1.0, 4.0)


def test_every_figure_is_named_in_the_list() -> None:
    rates = dict.fromkeys(beside.TURNS, 1.0)
    figures = beside.figures(rates, rates, beside.Limits(1.0, 1.0, 1.0))
    assert tuple(figure.name for figure in figures) == beside.NAMES


def test_one_streams_rate_counts_from_its_first_piece() -> None:
    answer = Answer(asked=0.0, pieces=(1.0, 1.5, 3.0), tokens=9)
    assert answer.first_s == 1.0
    assert answer.rate == 4.0


def test_rate_of_many_streams_counts_from_the_question() -> None:
    assert chat.together([Answer(0.0, (1.0, 2.0), 10), Answer(0.0, (3.0, 4.0), 10)]) == 5.0


def test_client_counts_the_servers_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Answer] = []

    def keep(answers: list[Answer]) -> float:
        seen.extend(answers)
        return 1.0

    monkeypatch.setattr(chat, "together", keep)
    with scripted() as api:
        speed = chat.speed(api, "any")
    assert speed.first_s > 0
    assert len(seen) == chat.CROWD * chat.ROUNDS
    assert all((answer.tokens, len(answer.pieces)) == (5, 3) for answer in seen)


def test_refusing_server_is_a_row_with_its_reason() -> None:
    @contextmanager
    def start() -> Iterator[Server]:
        with scripted(status=404) as api:
            yield Server(api, "any", ())

    row = measure("refusing", start)
    assert row.tokens_per_s is None
    assert "it answered 404" in row.why_not


def test_absent_peer_is_a_row_with_its_reason() -> None:
    def start() -> AbstractContextManager[Server]:
        raise AbsentError("there is no wheel of it")

    assert measure("absent", start) == Row("absent", why_not="there is no wheel of it")


def test_no_two_questions_begin_alike() -> None:
    assert len(set(chat.SUBJECTS)) == len(chat.SUBJECTS)


@pins
def test_pinned_process_keeps_all_threads_on_one_core() -> None:
    with started(ONE_BUSY_THREAD) as process:
        pin(process.pid, 0)
        cores = [os.sched_getaffinity(thread.id) for thread in psutil.Process(process.pid).threads()]
    assert cores == [{min(os.sched_getaffinity(0))}] * 2


@pins
def test_pinned_engine_keeps_only_its_computing_thread() -> None:
    with started(ONE_BUSY_THREAD) as process:
        pin_busiest(process.pid, 0)
        cores = [os.sched_getaffinity(thread.id) for thread in psutil.Process(process.pid).threads()]
    assert sorted(cores, key=len) == [{min(os.sched_getaffinity(0))}, os.sched_getaffinity(0)]


def test_curves_are_drawn_from_what_the_bench_wrote(tmp_path: Path) -> None:
    points = ((2, 8, 30.0), (1, 1, 10.0), (2, 1, 9.0))
    results = tmp_path / "bench.json"
    write([Figure("hop_us", 1.0, "µs", ""), Figure("throughput", 30.0, "tok/s", "", points=points)], results)
    figures = msgspec.json.decode(results.read_bytes(), type=list[Figure])
    assert series(figures) == {1: [(1, 10.0)], 2: [(1, 9.0), (8, 30.0)]}
