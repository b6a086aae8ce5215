"""Hostile chat templates: attacks, with a canary that shows whether they succeed, and bombs.

Also conversations, and a renderer with processes that are counted.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import psutil

from models.errors import TemplateError
from models.templates.chat_template import ChatTemplate, new_environment
from models.templates.renderer import TemplateRenderer

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  <b>Hi</b> & 'bye' \n"}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "uno – ein 🙂"},
        {"role": "user", "content": "2"},
    ],
    [{"role": "user", "content": "1"}, {"role": "tool", "content": "2"}, {"role": "user", "content": "3"}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é> & 'q'"}}]

RICH = """
{%- if tools %}
    {{- tools | tojson }}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
{{ bos_token }}{{ message.role }}: {% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ eos_token }}

    {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}{{ style }}
"""
"""A template like those of tool-calling models. It uses everything that our environment adds to jinja2."""

_BUILTINS = "__globals__['__builtins__']"
_ENVIRON = "__globals__[jinja2].loaders.os.environ[CANARY]"

# TOUCH is a shell command that makes the canary's file, SECRET a file to read, CANARY an environment variable.
ATTACKS = {
    "cycler": "{{ cycler.__init__.__globals__.os.system('TOUCH') }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('TOUCH').read() }}",
    "joiner": "{{ joiner['__init__']['__globals__']['os'].system('TOUCH') }}",
    "namespace": "{{ namespace.__init__.__globals__['os'].system('TOUCH') }}",
    "import of os": f"{{{{ raise_exception.{_BUILTINS}['__import__']('os').system('TOUCH') }}}}",
    "open": f"{{{{ raise_exception.{_BUILTINS}['open']('SECRET').read() }}}}",
    "the environment": "{{ raise_exception.__globals__.jinja2.loaders.os.environ['CANARY'] }}",
    "subclasses": (
        "{% for kind in ''.__class__.__mro__[1].__subclasses__() %}{% if kind.__name__ == 'Popen' %}"
        "{{ kind('TOUCH', shell=true).wait() }}{% endif %}{% endfor %}"
    ),
    "self": f"{{{{ self.__init__.{_BUILTINS}['open']('SECRET').read() }}}}",
    "request": f"{{{{ request.application.{_BUILTINS}['open']('SECRET').read() }}}}",
    "config": f"{{{{ config.from_object.{_BUILTINS}['open']('SECRET').read() }}}}",
    "attr": "{{ ((raise_exception|attr('__globals__'))['__builtins__']['open'])('SECRET').read() }}",
    "map by attribute": "{{ [raise_exception]|map(attribute='__globals__.jinja2.loaders.os.environ.CANARY')|join }}",
    "map by attr": (
        "{% for names in [raise_exception]|map('attr', '__globals__') %}"
        "{{ names['__builtins__']['open']('SECRET').read() }}{% endfor %}"
    ),
    "format": f"{{{{ '{{0.{_ENVIRON}}}'.format(raise_exception) }}}}",
    "format by attr": f"{{{{ ('{{0.{_ENVIRON}}}'|attr('format'))(raise_exception) }}}}",
    "format_map": f"{{{{ '{{a.{_ENVIRON}}}'.format_map({{'a': raise_exception}}) }}}}",
    "include": "{% include 'SECRET' %}",
    "import": "{% import 'SECRET' as stolen %}{{ stolen }}",
    "extends": "{% extends 'SECRET' %}",
    "a generator": "{{ ([1]|map('string')).gi_frame.f_globals['__builtins__']['open']('SECRET').read() }}",
    "a macro": f"{{% macro m() %}}{{% endmacro %}}{{{{ m._func.{_BUILTINS}['open']('SECRET').read() }}}}",
}

# Each takes more time or memory than a render has.
TIME_BOMBS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power, folded while compiling": "{{ 9 ** (9 ** 9) }}",
    "a power": "{% set n = messages|length + 8 %}{{ n ** (n ** n) }}",
    "sums of ranges": "{% for a in range(99999) %}{% set n = range(99999)|sum %}{% endfor %}",
}
MEMORY_BOMBS = {
    "a long string": "{{ 'a' * 3000000000 }}",
    "a wide centre": "{{ 'a'|center(2000000000) }}{{ 'a'.center(2000000000) }}",
    "doubling": (
        "{% set s = namespace(text='ab') %}{% for a in range(60) %}{% set s.text = s.text + s.text %}{% endfor %}"
        "{{ s.text }}"
    ),
    "a wide format": "{{ '%3000000000d' % 1 }}",
    "a wide format string": "{{ '{:>3000000000}'.format(1) }}",
    "a long list": "{{ ([0] * 1000000000)|length }}",
    "a list that grows": (
        "{% set s = namespace(all=[0]) %}{% for a in range(60) %}{% set s.all = s.all + s.all %}{% endfor %}"
    ),
    "an indent": "{{ messages|tojson(indent=2000000000) }}",
    "joined": "{{ (['a' * 99999] * 99999)|join }}",
}
REFUSED_BOMBS = {
    "deep recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "a range beyond bounds": "{{ range(10000000)|list }}",
    "a flood": "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "a deep template": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "lipsum": "{{ lipsum(n=100000) }}",
}

VARIABLE = "EXOBUS_CANARY"
WITHIN_S = 30.0


@dataclass(frozen=True)
class Canary:
    """A file that attacks make, and a secret in a file and in the environment that they read."""

    touched: Path
    secret_file: Path
    secret: str

    def aim(self, attack: str) -> str:
        """Fill in the names of this canary."""
        command = f"touch {self.touched}"
        return attack.replace("TOUCH", command).replace("SECRET", str(self.secret_file)).replace("CANARY", VARIABLE)

    def survives(self, render: Callable[[], str]) -> bool:
        """Run an attack. Returns whether it made no file, and neither its text nor its error contains the secret."""
        try:
            return self.is_unharmed_by(render())
        except TemplateError as error:
            return self.is_unharmed_by(str(error))

    def is_unharmed_by(self, output: str) -> bool:
        """Judge the output of an attack that has run."""
        return not self.touched.exists() and self.secret not in output


@contextmanager
def watched(folder: Path) -> Iterator[Canary]:
    """Put a canary in `folder` and, while the block runs, in this process's environment."""
    canary = Canary(folder / "touched", folder / "secret", f"secret-{os.urandom(8).hex()}")
    canary.secret_file.write_text(canary.secret)
    os.environ[VARIABLE] = canary.secret
    try:
        yield canary
    finally:
        del os.environ[VARIABLE]


def template_of(folder: Path) -> str:
    """Read the chat template in a model folder's settings."""
    return str(json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])


def unsandboxed() -> jinja2.Environment:
    """Make the environment of a careless host, with files and with names that web frameworks add."""
    ours = new_environment()
    files = jinja2.FileSystemLoader("/")
    careless = jinja2.Environment(extensions=list(ours.extensions), loader=files)  # noqa: S701  no HTML here
    careless.globals |= {name: ours.globals[name] for name in ("raise_exception", "strftime_now")}
    careless.globals["request"] = SimpleNamespace(application=unsandboxed)
    careless.globals["config"] = SimpleNamespace(from_object=unsandboxed)
    return careless


GOOD = ChatTemplate("{{ messages[0].content }}", None, None)
ENDLESS = ChatTemplate(TIME_BOMBS["nested ranges"], None, None)


def children() -> list[psutil.Process]:
    """List the live child processes of this process."""
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


@asynccontextmanager
async def rendering(within_s: float = WITHIN_S) -> AsyncIterator[TemplateRenderer]:
    """Make a renderer, and check that none of its processes is left after the block."""
    before = children()
    renderer = TemplateRenderer(within_s)
    try:
        async with asyncio.timeout(2 * WITHIN_S):
            yield renderer
    finally:
        await renderer.close()
    assert renderer.pids == []
    assert children() == before


async def until(happened: Callable[[], object]) -> None:
    """Poll for something that sends no message. The block of `rendering` has the deadline."""
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def good(renderer: TemplateRenderer) -> None:
    """Check that the renderer still renders."""
    assert await renderer.render(GOOD, [{"content": "hello"}]) == "hello"


async def busy(renderer: TemplateRenderer, pid: int = 0) -> int:
    """Wait for a child other than `pid` that works. Returns its process id."""
    await until(lambda: _working(renderer, pid))
    return _working(renderer, pid)[0]


def _working(renderer: TemplateRenderer, but: int) -> list[int]:
    return [pid for pid in renderer.pids if pid != but and psutil.Process(pid).cpu_times().user > 0.2]


def outcome(render: Callable[[], str]) -> str:
    """Return the text, or the error as text."""
    try:
        return render()
    except TemplateError as error:
        return f"error: {error}"


async def outcome_of(render: Awaitable[str]) -> str:
    """Return the text, or the error as text."""
    try:
        return await render
    except TemplateError as error:
        return f"error: {error}"
