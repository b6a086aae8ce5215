"""The sentences of fields that are missing, unknown or not valid, and the path of each. Knows no field of a request."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from gateway.openai.errors import FieldError

MAX_NAME = 256  # characters of a name
MAX_QUOTED = 300  # characters of the client's own in an error

_AT = re.compile(r" - at `\$\.?(?P<path>[\w.\[\]]*)`\Z")
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_PART = re.compile(r"(?P<part>messages\[\d+\]\.content\[\d+\])(?P<type>\.type)?")


def validation_error(error: str, request_fields: Collection[str], message_fields: Collection[str]) -> FieldError:
    """Return the error of msgspec's message, with the path in it as the `param`."""
    match = _AT.search(error)
    reason, path = (error[: match.start()], match["path"]) if match else (error, "")
    prefix = f"{path}." if path else ""
    unknown = _UNKNOWN.fullmatch(reason)
    if (part := _PART.fullmatch(path)) and (part["type"] or unknown):
        return _not_text(part["part"], unknown["name"] if unknown else "")
    if missing := _MISSING.match(reason):
        return invalid(prefix + missing["name"], "is required")
    if unknown:
        known = message_fields if prefix.startswith("messages") else request_fields
        return _unknown_field(unknown["name"], prefix, known)
    if not path:
        return FieldError("the body must be a JSON object with at least model and messages")
    return invalid(path, f"is not valid: {reason[:1].lower()}{reason[1:MAX_QUOTED]}")


def _not_text(part: str, field: str) -> FieldError:
    what = f"has a field `{field[:MAX_NAME]}`" if field else "is of another type"
    return unsupported(part, f'`{part}` {what}; only text parts are read: {{"type": "text", "text": "…"}}')


def invalid(name: str, what: str) -> FieldError:
    """Return the error of a field that is known."""
    return FieldError(f"`{name}` {what}", param=name)


def unsupported(name: str, sentence: str) -> FieldError:
    """Return the error of a field that asks for something that is not there."""
    return FieldError(sentence, code="unsupported_parameter", param=name)


def _unknown_field(name: str, prefix: str, known: Collection[str]) -> FieldError:
    shown = prefix + name[:80]
    near = difflib.get_close_matches(name[:80], known, n=1)
    hint = f"did you mean `{prefix}{near[0]}`?" if near else "leave it out"
    return FieldError(f"there is no field `{shown}`; {hint}", code="unknown_parameter", param=shown)
