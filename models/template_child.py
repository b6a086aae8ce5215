"""The process that renders chat templates: `python -m models.template_child`. Knows one pipe in and one out.

It ties its own hands before it looks at the first template: it opens no file and no connection, starts no process,
writes to no file, and has a limit of memory for all of its life and of processor time for each render. The wall
clock is the asker's, who kills this process. It ends with end-of-file on its standard input; if the asker dies while
a template runs, with the limit of processor time.

macOS knows no limit of address space, so there only the time is bounded.

A message is four bytes of length, big-endian, and that much MessagePack. An empty one, sent once, says that the
process is ready. Whoever runs out of memory ends with the exit status OUT_OF_MEMORY.
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

from models.chat_template import ChatTemplate
from models.errors import TemplateError

MEMORY_BYTES = 512 << 20  # above what the process has when it is ready
CPU_S = 3  # of one render; more than the wall time that an asker gives it
OUT_OF_MEMORY = 71  # EX_OSERR
LENGTH = struct.Struct(">I")

# Python and jinja2 load some of their files when they first need them, and there is a first time for each in here.
_FIRST = """
{{ messages | pprint }}{{ 'a\\n' | wordwrap(1) }}{{ '<a>&amp;' | striptags }}{{ messages | tojson(indent=1) }}
{{ strftime_now('%Z') }}{{ 'é'.encode('utf-16').decode('utf-16') }}{{ '%5.2f' % 1 }}{{ '{:,}'.format(1) }}
{{ raise_exception('done') }}
"""
_OOM_SCORE = "900"  # where memory is short, Linux ends this process first
_OPEN_FILES = 3  # the standard ones


class Render(msgspec.Struct, frozen=True, array_like=True):
    """Asks for the text of a conversation. The template is compiled once and then known by its source."""

    source: str
    bos_token: str | None
    eos_token: str | None
    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    variables: dict[str, Any]


class Rendered(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The text."""

    text: str


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The sentence of a TemplateError."""

    sentence: str


_decode = msgspec.msgpack.Decoder(Render).decode
_encode = msgspec.msgpack.Encoder().encode


def main() -> None:
    """Render what comes in, one after the other, until nothing does."""
    try:
        _load_everything()
        confine()
        _write(sys.stdout.buffer, b"")
        while frame := _read(sys.stdin.buffer):
            allow_cpu(CPU_S)
            _write(sys.stdout.buffer, _encode(_answer(_decode(frame))))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # nothing else is sure to work now


def confine() -> None:
    """Give up, for good, what rendering does not need once everything is loaded. OSError, ValueError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asker's
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NPROC, 0)
    if sys.platform == "linux":
        _lower(resource.RLIMIT_AS, _address_space() + MEMORY_BYTES)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)


def _load_everything() -> None:
    with suppress(TemplateError):
        ChatTemplate(_FIRST, None, None).render([{"role": "user"}])


def allow_cpu(seconds: int) -> None:
    """Let this process take that many seconds of processor time from now on, and no more; SIGXCPU ends it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_at_most(math.ceil(time.process_time()) + seconds, hard), hard))


def _lower(kind: int, value: int) -> None:
    lowered = _at_most(value, resource.getrlimit(kind)[1])
    resource.setrlimit(kind, (lowered, lowered))


def _at_most(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _answer(ask: Render) -> Rendered | Refused:
    try:
        template = ChatTemplate(ask.source, ask.bos_token, ask.eos_token)
        return Rendered(template.render(ask.messages, ask.add_generation_prompt, **ask.variables))
    except TemplateError as error:
        return Refused(str(error))
    except MemoryError:
        raise
    except Exception as error:  # a template found a fault of jinja2's; its text may hold a prompt
        return Refused(f"the model's chat template fails ({type(error).__name__}); use another model")


def _read(pipe: BinaryIO) -> bytes:
    """The next message; empty at the end."""
    head = pipe.read(LENGTH.size)
    return pipe.read(*LENGTH.unpack(head)) if len(head) == LENGTH.size else b""


def _write(pipe: BinaryIO, message: bytes) -> None:
    pipe.write(LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


if __name__ == "__main__":
    main()
