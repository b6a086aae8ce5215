"""Hostile chat templates: those that reach out, with a canary that shows whether they did, and those that explode.

And a renderer to try them on, whose processes are counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jinja2
import psutil

from models.chat_template import ChatTemplate, _environment
from models.errors import TemplateError
from models.template_renderer import TemplateRenderer

RICH = """
{%- if tools %}
    {{- tools | tojson }}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
{{ bos_token }}{{ message.role }}: {% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ eos_token }}

    {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}{{ style }}
"""
"""A template in the manner of tool-calling models, touching everything that the environment adds to jinja2."""

_BUILTINS = "__globals__['__builtins__']"
_ENVIRON = "__globals__[jinja2].loaders.os.environ[CANARY]"

# TOUCH is a shell command that makes the canary's file, SECRET a file to read, CANARY a variable of the environment.
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

# Each asks for more time or memory than a render has; MANY is a range's largest length.
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


@dataclass(frozen=True)
class Canary:
    """A file that attacks make, and a secret, in a file and in the environment, that they read."""

    touched: Path
    secret_file: Path
    secret: str

    def aim(self, attack: str) -> str:
        """The attack with the names of this canary."""
        command = f"touch {self.touched}"
        return attack.replace("TOUCH", command).replace("SECRET", str(self.secret_file)).replace("CANARY", VARIABLE)

    def survives(self, render: Callable[[], str]) -> bool:
        """Whether the attack did not make the file, and neither its text nor its refusal holds the secret."""
        try:
            return self.is_unharmed_by(render())
        except TemplateError as error:
            return self.is_unharmed_by(str(error))

    def is_unharmed_by(self, said: str) -> bool:
        """The same, for what was said."""
        return not self.touched.exists() and self.secret not in said


@contextmanager
def watched(folder: Path) -> Iterator[Canary]:
    """A canary in `folder` and, while the block runs, in this process's environment."""
    canary = Canary(folder / "touched", folder / "secret", f"secret-{os.urandom(8).hex()}")
    canary.secret_file.write_text(canary.secret)
    os.environ[VARIABLE] = canary.secret
    try:
        yield canary
    finally:
        del os.environ[VARIABLE]


def unsandboxed() -> jinja2.Environment:
    """What a careless host gives to templates: files, and names that web frameworks add."""
    ours = _environment()
    files = jinja2.FileSystemLoader("/")
    careless = jinja2.Environment(extensions=list(ours.extensions), loader=files)  # noqa: S701  no HTML here
    careless.globals |= {name: ours.globals[name] for name in ("raise_exception", "strftime_now")}
    careless.globals["request"] = SimpleNamespace(application=unsandboxed)
    careless.globals["config"] = SimpleNamespace(from_object=unsandboxed)
    return careless


WITHIN_S = 30.0
GOOD = ChatTemplate("{{ messages[0].content }}", None, None)
ENDLESS = ChatTemplate(TIME_BOMBS["nested ranges"], None, None)


def children() -> list[psutil.Process]:
    """The live template children of this process."""
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


@asynccontextmanager
async def rendering(within_s: float = WITHIN_S) -> AsyncIterator[TemplateRenderer]:
    """A renderer; no process of it is left after the block."""
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
    """Wait for something that sends no message; the renderer's block has the deadline."""
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def good(renderer: TemplateRenderer) -> None:
    """The renderer still renders."""
    assert await renderer.render(GOOD, [{"content": "hello"}]) == "hello"


async def busy(renderer: TemplateRenderer, pid: int = 0) -> int:
    """Wait for a child other than `pid` that works; its process id."""
    await until(lambda: _working(renderer, pid))
    return _working(renderer, pid)[0]


def _working(renderer: TemplateRenderer, but: int) -> list[int]:
    return [pid for pid in renderer.pids if pid != but and psutil.Process(pid).cpu_times().user > 0.2]


def outcome(render: Callable[[], str]) -> str:
    """The text or the refusal."""
    try:
        return render()
    except TemplateError as error:
        return f"refused: {error}"


async def outcome_of(render: Awaitable[str]) -> str:
    """The text or the refusal."""
    try:
        return await render
    except TemplateError as error:
        return f"refused: {error}"
