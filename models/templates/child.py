"""The process that renders chat templates: `python -m models.templates.child`. Knows one pipe in and one out.

It gives up its own rights before it reads the first template: after that it can open no file and no connection, start
no process and write to no file, and it has a limit of memory for its lifetime and of processor time for each render.
The parent process watches the wall clock, and kills this process if a render takes too long. This process ends at
end-of-file on its standard input, and if the parent dies while a template runs, at the limit of processor time.

macOS has no limit of address space, so only the time is bounded there.

A message is four bytes of length, big-endian, followed by that many bytes of MessagePack. An empty message, sent once,
means that the process is ready. A process that runs out of memory ends with the exit status OUT_OF_MEMORY.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any, BinaryIO

import msgspec

from models.errors import TemplateError
from models.templates.chat_template import ChatTemplate

MEMORY_BYTES = 512 << 20  # beyond what the process has when it is ready
CPU_S = 3  # of one render; more than the wall time that a parent allows
OUT_OF_MEMORY = 71  # EX_OSERR
LENGTH = struct.Struct(">I")

# Python and jinja2 load some of their modules on first use. This template uses each of them before `confine`.
_WARM_UP = """
{{ messages | pprint }}{{ 'a\\n' | wordwrap(1) }}{{ '<a>&amp;' | striptags }}{{ messages | tojson(indent=1) }}
{{ strftime_now('%Z') }}{{ 'é'.encode('utf-16').decode('utf-16') }}{{ '%5.2f' % 1 }}{{ '{:,}'.format(1) }}
{{ raise_exception('done') }}
"""
_OOM_SCORE = "900"  # if memory runs short, Linux ends this process first
_OPEN_FILES = 3  # standard input, output and error


class RenderRequest(msgspec.Struct, frozen=True, array_like=True):
    """Asks for the text of a conversation. A template is compiled once and then cached by its source."""

    source: str
    bos_token: str | None
    eos_token: str | None
    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    variables: dict[str, Any]


class Rendered(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The text of a conversation."""

    text: str


class RenderFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The sentence of a TemplateError."""

    sentence: str


_decode = msgspec.msgpack.Decoder(RenderRequest).decode
_encode = msgspec.msgpack.Encoder().encode


def main() -> None:
    """Serve one request after another until the input ends."""
    try:
        with suppress(TemplateError):
            ChatTemplate(_WARM_UP, None, None).render([{"role": "user"}])
        confine()
        _write(sys.stdout.buffer, b"")
        while frame := _read(sys.stdin.buffer):
            allow_cpu(CPU_S)
            _write(sys.stdout.buffer, _encode(_render(_decode(frame))))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # anything else might need memory


def confine() -> None:
    """Give up permanently what rendering does not need once everything is loaded. Raises OSError or ValueError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NPROC, 0)
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            address_space = int(statm.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, address_space + MEMORY_BYTES)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)


def allow_cpu(seconds: int) -> None:
    """Let this process take that many seconds of processor time from now on; then SIGXCPU ends it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_at_most(math.ceil(time.process_time()) + seconds, hard), hard))


def _lower(kind: int, value: int) -> None:
    """Set both the soft and the hard limit, so that the process cannot raise it again."""
    lowered = _at_most(value, resource.getrlimit(kind)[1])
    resource.setrlimit(kind, (lowered, lowered))


def _at_most(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _render(request: RenderRequest) -> Rendered | RenderFailed:
    try:
        template = ChatTemplate(request.source, request.bos_token, request.eos_token)
        return Rendered(template.render(request.messages, request.add_generation_prompt, **request.variables))
    except TemplateError as error:
        return RenderFailed(str(error))
    except MemoryError:
        raise
    except Exception as error:  # a template ran into a fault of jinja2; the error's text may quote a prompt
        return RenderFailed(f"the model's chat template fails ({type(error).__name__}); use another model")


def _read(pipe: BinaryIO) -> bytes:
    """Read the next message; empty at end-of-file."""
    head = pipe.read(LENGTH.size)
    return pipe.read(*LENGTH.unpack(head)) if len(head) == LENGTH.size else b""


def _write(pipe: BinaryIO, message: bytes) -> None:
    pipe.write(LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


if __name__ == "__main__":
    main()
