"""The child that renders templates, alone: its limits, its replies, and its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from models.templates.child import CPU_S, LENGTH, MEMORY_BYTES, OUT_OF_MEMORY, Rendered, RenderFailed, RenderRequest
from tests.support.templates import CONVERSATIONS, MEMORY_BOMBS, TIME_BOMBS, WITHIN_S

ROOT = Path(__file__).parents[3]


# Tries what a template outside of the sandbox would try, and prints what worked.
TRIES = """
import json, os, socket, sys
from models.templates.child import confine
tries = {
    "write": lambda: os.write(2, b"x"),
    "connect": lambda: socket.socket(),
    "read": lambda: open("/etc/passwd"),
    "make": lambda: open(sys.argv[1], "w"),
    "memory": lambda: bytearray(600 << 20),
}
if sys.argv[2] == "confined":
    confine()
done = []
for name, attempt in tries.items():
    try:
        attempt()
        done.append(name)
    except (OSError, MemoryError):
        pass
if os.system("true") == 0:
    done.append("run")
print(json.dumps(done))
"""


FAULTY = """
from models.templates import child
def fault(template, messages, *_):
    if "content" in messages[0]:
        raise OSError("private")
child.ChatTemplate.render = fault
child.main()
"""


BUSY_LOOP = "from models.templates.child import allow_cpu\nfor _ in range(2): allow_cpu(1)\nwhile True: pass"


_decode: Callable[[bytes], Rendered | RenderFailed] = msgspec.msgpack.Decoder(Rendered | RenderFailed).decode


@contextmanager
def child(*how: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child and wait until it is ready. It is gone after the block."""
    command = [sys.executable, *(how or ("-m", "models.templates.child"))]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(LENGTH.size) == LENGTH.pack(0)
            yield process
        finally:
            process.kill()


def send(process: subprocess.Popen[bytes], source: str, messages: list[dict[str, Any]]) -> None:
    """Send a request to render."""
    assert process.stdin is not None
    message = msgspec.msgpack.encode(RenderRequest(source, None, None, messages, True, {}))
    process.stdin.write(LENGTH.pack(len(message)) + message)
    process.stdin.flush()


def receive(process: subprocess.Popen[bytes]) -> Rendered | RenderFailed:
    """Read the next reply."""
    assert process.stdout is not None
    size = LENGTH.unpack(process.stdout.read(LENGTH.size))
    return _decode(process.stdout.read(*size))


def successes(tmp_path: Path, how: str) -> set[str]:
    """Run TRIES with its standard error in a file. Returns what worked."""
    command = [sys.executable, "-c", TRIES, str(tmp_path / "made"), how]
    with (tmp_path / "errors").open("wb") as errors:
        child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, timeout=WITHIN_S, check=True)
    return set(json.loads(child.stdout))


def test_confined_child_can_use_only_its_pipes(tmp_path: Path) -> None:
    everything = {"write", "connect", "read", "make", "memory", "run"}
    assert successes(tmp_path, "free") == everything
    unbounded = set() if sys.platform == "linux" else {"memory"}
    assert successes(tmp_path, "confined") == unbounded


@pytest.mark.skipif(sys.platform != "linux", reason="psutil reads the limits of another process on Linux only")
def test_limits_are_set_before_the_child_is_ready() -> None:
    with child() as process:
        of = psutil.Process(process.pid)
        limits = {name: of.rlimit(getattr(psutil, name)) for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC")}
        assert set(limits.values()) == {(0, 0)}
        assert of.rlimit(psutil.RLIMIT_NOFILE) == (3, 3)
        soft, hard = of.rlimit(psutil.RLIMIT_AS)
        assert soft == hard
        assert abs(soft - MEMORY_BYTES - of.memory_info().vms) < 16 << 20
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "900\n"


def test_processor_time_limit_ends_the_process() -> None:
    command = [sys.executable, "-c", BUSY_LOOP]
    assert subprocess.run(command, cwd=ROOT, timeout=WITHIN_S).returncode == -signal.SIGXCPU


def test_processor_time_is_limited_for_each_render() -> None:
    work = "{% for a in range(40) %}{% for b in range(99999) %}{% endfor %}{% endfor %}."
    with child() as process:
        used = 0.0
        while used < CPU_S + 1:
            send(process, work, [])
            assert receive(process) == Rendered(".")
            used = sum(psutil.Process(process.pid).cpu_times()[:2])


def test_parents_death_ends_a_working_child() -> None:
    with child() as process:
        send(process, TIME_BOMBS["nested ranges"], [])
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WITHIN_S) == -signal.SIGXCPU


def test_child_exits_at_end_of_input() -> None:
    with child() as process:
        send(process, "{{ messages[0].content }}", CONVERSATIONS[0])
        assert process.stdin is not None
        process.stdin.close()
        assert receive(process) == Rendered(CONVERSATIONS[0][0]["content"])
        assert process.wait(WITHIN_S) == 0


def test_child_exits_at_a_truncated_message() -> None:
    with child() as process:
        assert process.stdin is not None
        process.stdin.write(LENGTH.pack(100)[:3])
        process.stdin.close()
        assert process.wait(WITHIN_S) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of address space")
def test_exhausted_memory_ends_child_with_its_status() -> None:
    with child() as process:
        send(process, MEMORY_BOMBS["a long string"], [])
        assert process.wait(WITHIN_S) == OUT_OF_MEMORY


def test_internal_error_does_not_reveal_the_prompt() -> None:
    with child("-c", FAULTY) as process:
        send(process, "{{ messages[0].content }}", CONVERSATIONS[0])
        assert receive(process) == RenderFailed("the model's chat template fails (OSError); use another model")


def test_child_ignores_the_interrupt_signal() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits an ignored signal
    try:
        with child() as process:
            process.send_signal(signal.SIGINT)
            send(process, "{{ messages[0].content }}", CONVERSATIONS[0])
            assert receive(process) == Rendered(CONVERSATIONS[0][0]["content"])
    finally:
        signal.signal(signal.SIGINT, before)
