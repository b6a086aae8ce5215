"""Renders a model's chat template in a sandbox. Knows no tokenizer and no model.

A template comes from a model repository, so it runs in jinja2's immutable sandbox. It may use what templates of such
repositories expect: loop controls, `tojson`, `raise_exception`, `strftime_now`, `generation`.

The sandbox limits what a template can reach, but not its time or memory. A server therefore renders through
`models.templates.renderer`, in a process that has limits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.errors import TemplateError
from models.templates.message_form import Message, Messages, content_form, takes_system, without_system

MAX_SOURCE_BYTES = 64 << 10
MAX_RENDERED_CHARACTERS = 4 << 20
MAX_REASON_CHARACTERS = 1000  # of the message of a template's error
COMPILED = 8  # templates that stay compiled

# A template is a program: besides jinja2's own errors it can raise any error that a Python expression can.
_EXPRESSION_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template and the special tokens that it may write. It is a value, and is compiled when first rendered.

    Raises TemplateError if the source is larger than MAX_SOURCE_BYTES or is not valid Unicode.
    """

    source: str
    bos_token: str | None
    eos_token: str | None

    def __post_init__(self) -> None:
        try:
            size = len(self.source.encode())
        except UnicodeEncodeError:
            raise TemplateError("the model's chat template is not valid text; use another model") from None
        if size > MAX_SOURCE_BYTES:
            limit = f"{size} bytes, and at most {MAX_SOURCE_BYTES} are allowed"
            raise TemplateError(f"the model's chat template has {limit}; use another model")

    def render(self, messages: Messages, add_generation_prompt: bool = True, /, **variables: Any) -> str:
        """Return the prompt text of a conversation. The template sees `variables`, such as tools.

        A content is given as text or as typed parts, whichever the template writes out. If it writes no system
        message, the user's next text begins with it. Raises TemplateError if the template does not compile, fails,
        refuses the messages, writes too much or leaves out what the user says.
        """
        if any(message.get("role") == "system" for message in messages) and not _takes_system(self):
            messages = without_system(messages)
        if any(message.get("role") == "user" and message.get("content") for message in messages):
            messages = [_content_form(self)(message) for message in messages]
        return self._written(messages, add_generation_prompt, variables)

    def _probed(self, messages: Messages) -> str:
        return self._written(messages, True, {})

    def _written(self, messages: Messages, add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        template = _compiled(self.source)
        tokens = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        known = {**tokens, "tools": None, "documents": None, **variables}
        known |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return _joined(template.generate(known))
        except (jinja2.TemplateError, *_EXPRESSION_ERRORS) as error:
            raise TemplateError(f"the model's chat template refuses these messages: {_reason(error)}") from error


@lru_cache(COMPILED)
def _compiled(source: str) -> jinja2.Template:
    """Compile a template, or take it from the cache. Raises TemplateError."""
    try:
        return new_environment().from_string(source)
    except (jinja2.TemplateError, SyntaxError, *_EXPRESSION_ERRORS) as error:
        sentence = f"the model's chat template does not compile: {_reason(error)}; use another model"
        raise TemplateError(sentence) from error


@lru_cache(COMPILED)
def _content_form(template: ChatTemplate) -> Callable[[Message], Message]:
    return content_form(template._probed)


@lru_cache(COMPILED)
def _takes_system(template: ChatTemplate) -> bool:
    """Find whether a template takes a system role, with contents in the form that it writes out."""
    form = _content_form(template)
    return takes_system(lambda messages: template._probed([form(message) for message in messages]))


def _joined(pieces: Iterable[str]) -> str:
    """Join the pieces as they come. Raises TemplateError as soon as the text is too long."""
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_RENDERED_CHARACTERS:
            limit = f"more than {MAX_RENDERED_CHARACTERS} characters"
            raise TemplateError(f"the model's chat template makes {limit} of these messages; shorten them")
        kept.append(piece)
    return "".join(kept)


def _reason(error: Exception) -> str:
    return str(error)[:MAX_REASON_CHARACTERS]


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's turns for training. Rendering ignores it."""

    tags = {"generation"}  # noqa: RUF012  the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def new_environment() -> ImmutableSandboxedEnvironment:
    """Make the sandbox in which all templates are compiled."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    for name in ("cycler", "joiner", "lipsum"):  # chat templates do not need them, attacks do
        del environment.globals[name]
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as a model reads it, while jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
