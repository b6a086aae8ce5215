"""The child that renders templates, alone: what it gives up, what it answers, and how it ends."""

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

from models.template_child import CPU_S, LENGTH, MEMORY_BYTES, OUT_OF_MEMORY, Refused, Render, Rendered
from tests.models.test_chat_template import CONVERSATIONS
from tests.support.templates import MEMORY_BOMBS, TIME_BOMBS

ROOT = Path(__file__).parent.parent.parent
WITHIN_S = 30.0

# Tries what a template that got out of the sandbox would try; prints what it could do.
TRIES = """
import json, os, socket, sys
from models.template_child import confine
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
from models import template_child
def fault(template, messages, *_):
    if "content" in messages[0]:
        raise OSError("private")
template_child.ChatTemplate.render = fault
template_child.main()
"""
ENDLESS = "from models.template_child import allow_cpu\nfor _ in range(2): allow_cpu(1)\nwhile True: pass"

_decode: Callable[[bytes], Rendered | Refused] = msgspec.msgpack.Decoder(Rendered | Refused).decode


@contextmanager
def child(*how: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that said that it is ready; it is gone after the block."""
    command = [sys.executable, *(how or ("-m", "models.template_child"))]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(LENGTH.size) == LENGTH.pack(0)
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[bytes], source: str, messages: list[dict[str, Any]]) -> None:
    """Ask for a rendering."""
    assert process.stdin is not None
    message = msgspec.msgpack.encode(Render(source, None, None, messages, True, {}))
    process.stdin.write(LENGTH.pack(len(message)) + message)
    process.stdin.flush()


def heard(process: subprocess.Popen[bytes]) -> Rendered | Refused:
    """Its next answer."""
    assert process.stdout is not None
    size = LENGTH.unpack(process.stdout.read(LENGTH.size))
    return _decode(process.stdout.read(*size))


def done(tmp_path: Path, how: str) -> set[str]:
    """What of TRIES worked, with its standard error in a file."""
    command = [sys.executable, "-c", TRIES, str(tmp_path / "made"), how]
    with (tmp_path / "errors").open("wb") as errors:
        child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, timeout=WITHIN_S, check=True)
    return set(json.loads(child.stdout))


def test_nothing_but_the_two_pipes_is_left_to_it(tmp_path: Path) -> None:
    everything = {"write", "connect", "read", "make", "memory", "run"}
    assert done(tmp_path, "free") == everything
    unbounded = set() if sys.platform == "linux" else {"memory"}
    assert done(tmp_path, "confined") == unbounded


@pytest.mark.skipif(sys.platform != "linux", reason="psutil reads the limits of another process on Linux only")
def test_its_limits_are_in_force_before_it_is_ready() -> None:
    with child() as process:
        of = psutil.Process(process.pid)
        limits = {name: of.rlimit(getattr(psutil, name)) for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC")}
        assert set(limits.values()) == {(0, 0)}
        assert of.rlimit(psutil.RLIMIT_NOFILE) == (3, 3)
        soft, hard = of.rlimit(psutil.RLIMIT_AS)
        assert soft == hard
        assert abs(soft - MEMORY_BYTES - of.memory_info().vms) < 16 << 20
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "900\n"


def test_a_template_that_never_ends_is_ended_by_its_processor_time() -> None:
    command = [sys.executable, "-c", ENDLESS]
    assert subprocess.run(command, cwd=ROOT, timeout=WITHIN_S).returncode == -signal.SIGXCPU


def test_each_render_has_its_own_processor_time() -> None:
    work = "{% for a in range(40) %}{% for b in range(99999) %}{% endfor %}{% endfor %}."
    with child() as process:
        used = 0.0
        while used < CPU_S + 1:
            tell(process, work, [])
            assert heard(process) == Rendered(".")
            used = sum(psutil.Process(process.pid).cpu_times()[:2])


def test_it_dies_with_its_asker_even_in_the_middle_of_a_template() -> None:
    with child() as process:
        tell(process, TIME_BOMBS["nested ranges"], [])
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WITHIN_S) == -signal.SIGXCPU


def test_the_end_of_its_input_ends_it() -> None:
    with child() as process:
        tell(process, "{{ messages[0].content }}", CONVERSATIONS[0])
        assert process.stdin is not None
        process.stdin.close()
        assert heard(process) == Rendered(CONVERSATIONS[0][0]["content"])
        assert process.wait(WITHIN_S) == 0


def test_half_a_message_ends_it() -> None:
    with child() as process:
        assert process.stdin is not None
        process.stdin.write(LENGTH.pack(100)[:3])
        process.stdin.close()
        assert process.wait(WITHIN_S) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of address space")
def test_without_memory_it_ends_and_says_so() -> None:
    with child() as process:
        tell(process, MEMORY_BOMBS["a long string"], [])
        assert process.wait(WITHIN_S) == OUT_OF_MEMORY


def test_a_fault_of_the_template_engine_is_a_refusal_without_the_prompts_text() -> None:
    with child("-c", FAULTY) as process:
        tell(process, "{{ messages[0].content }}", CONVERSATIONS[0])
        assert heard(process) == Refused("the model's chat template fails (OSError); use another model")


def test_it_ignores_the_interrupt_of_a_terminal() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who ignores it has children that do
    try:
        with child() as process:
            process.send_signal(signal.SIGINT)
            tell(process, "{{ messages[0].content }}", CONVERSATIONS[0])
            assert heard(process) == Rendered(CONVERSATIONS[0][0]["content"])
    finally:
        signal.signal(signal.SIGINT, before)
