"""A chat request: parsed, validated and refused field by field. Pure; knows no model, no HTTP.

No field is silently ignored: each is honoured, or on the list of those that change nothing, or refused by name.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cluster.sampling import SEEDS
from gateway.errors import ApiError

MAX_BODY_BYTES = 8 << 20
MAX_STOPS = 4
MAX_STOP_BYTES = 256
MAX_MESSAGES = 4096
MAX_CHOICES = 8

# Accepted, and of no effect on the answer.
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})

# Not supported; these values ask for nothing, so that clients which always send them work. So does null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template_kwargs": ({},),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_calls": ([],),
}


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message's content; other types are refused before."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: str | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates expect it: text parts joined with nothing between, `developer` as `system`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        return {"role": role, "content": content} | {key: text for key, text in named.items() if text is not None}


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a stream is written. Obfuscation is never added, so only its absence can be asked for."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields that are honoured. None means: the model's default."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens of one choice; the newer of the two names wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, whichever way they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def parse(body: bytes) -> ChatRequest:
    """A valid request. Raises ApiError 400, which names the field, for anything else."""
    fields = _recognised(_decode(body))
    try:
        request = msgspec.convert(fields, ChatRequest)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    _check_stops(request)
    _check_seed(request)
    if request.stream_options is not None and not request.stream:
        raise _wrong("stream_options", "is only allowed with stream: true")
    return request


def _decode(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON ({error}); send one JSON object") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body must be a JSON object with at least model and messages")
    return fields


def _recognised(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that change nothing; parts and fields that are not supported are refused by name."""
    known = _only_honoured(fields, ChatRequest.__struct_fields__, NEUTRAL, "")
    messages = known.get("messages")
    if isinstance(messages, list):
        known["messages"] = [_recognised_message(message, f"messages[{at}]") for at, message in enumerate(messages)]
    return known


def _recognised_message(message: Any, where: str) -> Any:
    if not isinstance(message, dict):
        return message
    parts = message.get("content")
    for at, part in enumerate(parts if isinstance(parts, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else "text"
        if isinstance(kind, str) and kind != "text":
            name = f"{where}.content[{at}]"
            raise _unsupported(name, f"`{name}` is of type {kind[:40]!r}; this model reads text parts only")
    return _only_honoured(message, ChatMessage.__struct_fields__, NEUTRAL_IN_MESSAGE, f"{where}.")


def _only_honoured(
    fields: dict[str, Any], honoured: tuple[str, ...], neutral: dict[str, tuple[Any, ...]], prefix: str
) -> dict[str, Any]:
    kept = {}
    for name, value in fields.items():
        if name in honoured:
            kept[name] = value
        elif name in neutral:
            if value is not None and value not in neutral[name]:
                raise _unsupported(prefix + name, f"`{prefix}{name}` is not supported; leave it out")
        elif prefix or name not in IGNORED:
            raise _unknown(name, (*honoured, *neutral), prefix)
    return kept


def _check_stops(request: ChatRequest) -> None:
    if len(request.stops) > MAX_STOPS:
        raise _wrong("stop", f"may hold {MAX_STOPS} strings at most, got {len(request.stops)}")
    for at, stop in enumerate(request.stops):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            name = "stop" if isinstance(request.stop, str) else f"stop[{at}]"
            raise _wrong(name, f"must have 1 to {MAX_STOP_BYTES} bytes")


def _check_seed(request: ChatRequest) -> None:
    if request.seed is not None and not -SEEDS // 2 <= request.seed < SEEDS:
        raise _wrong("seed", "must be an integer of 64 bits")


_AT = re.compile(r"(?P<reason>.*?) - at `\$\.?(?P<path>[^`]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`")


def _refusal(error: str) -> ApiError:
    """msgspec's message, with the path in it made the `param`."""
    match = _AT.fullmatch(error)
    reason, path = (match["reason"], match["path"]) if match else (error, "")
    if missing := _MISSING.match(reason):
        path = f"{path}.{missing['name']}".lstrip(".")
        return _wrong(path, "is required")
    return _wrong(path, f"is not valid: {reason[:1].lower()}{reason[1:]}")


def _wrong(name: str, what: str) -> ApiError:
    return ApiError(400, f"`{name}` {what}", param=name)


def _unsupported(name: str, sentence: str) -> ApiError:
    return ApiError(400, sentence, code="unsupported_parameter", param=name)


def _unknown(name: str, known: tuple[str, ...], prefix: str) -> ApiError:
    shown = prefix + name[:80]
    near = difflib.get_close_matches(name[:80], known, n=1)
    hint = f"did you mean `{prefix}{near[0]}`?" if near else "leave it out"
    return ApiError(400, f"there is no field `{shown}`; {hint}", code="unknown_parameter", param=shown)
