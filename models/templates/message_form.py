"""In which form a chat template takes messages: contents as text or as typed parts, with a system role or without.

A template shows that by what it makes of a message of one word. Knows no template, only a function that renders one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.errors import TemplateError

Message = Mapping[str, Any]
Messages = Sequence[Message]
Write = Callable[[Messages], str]
"""Renders messages. Raises TemplateError."""

_PROBE = "probe57"


def as_text(message: Message) -> Message:
    """Return the message as it is."""
    return message


def as_parts(message: Message) -> Message:
    """Return the message with its text as a list of one typed part, as models that see images have it."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def content_form(write: Write) -> Callable[[Message], Message]:
    """Find the form of contents that a template writes out.

    A template that refuses the word in one form and does not write it in the other may want more than one message, so
    it gets texts. Raises TemplateError if it writes the rest in both forms.
    """
    refused = False
    for form in (as_text, as_parts):
        try:
            if _PROBE in write([form({"role": "user", "content": _PROBE})]):
                return form
        except TemplateError:
            refused = True
    if refused:
        return as_text
    raise TemplateError("the model's chat template leaves out what the user says; use another model")


def takes_system(write: Write) -> bool:
    """Return whether a template writes out what a system message in front of a user's says.

    One that refuses the user's message alone as well shows nothing, and counts as one that does.
    """
    system, user = {"role": "system", "content": _PROBE}, {"role": "user", "content": "Hi"}
    try:
        return _PROBE in write([system, user])
    except TemplateError:
        try:
            write([user])
        except TemplateError:
            return True
        return False


def without_system(messages: Messages) -> list[Message]:
    """Put what system messages say in front of the next user's text, with an empty line between.

    If no user's message comes next, it becomes one of its own.
    """
    kept: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        role, content = message.get("role"), message.get("content") or ""
        if role == "system":
            waiting += [content] if content else []
            continue
        if waiting and role != "user":
            kept.append(_user(waiting))
        kept.append({**message, **_user([*waiting, content])} if waiting and role == "user" else message)
        waiting = []
    return [*kept, _user(waiting)] if waiting else kept


def _user(texts: Sequence[str]) -> Message:
    return {"role": "user", "content": "\n\n".join(filter(None, texts))}
