"""A chat request's body: parsed, validated, and refused field by field. Knows no model.

No field is silently ignored: each is honored, or on the list of those that change nothing, or refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from cluster.sampling import SEEDS
from gateway.core.prompt_limit import check_text_bytes
from gateway.core.request import Conversation, GenerationRequest, PromptMessage, SamplingOptions
from gateway.openai.errors import FieldError
from gateway.openai.field_errors import MAX_NAME, invalid, unsupported, validation_error
from gateway.openai.template_variables import ReasoningEffort, checked_arguments, template_variables

MAX_BODY_BYTES = 8 << 20
MAX_STOPS = 4
MAX_STOP_BYTES = 256
MAX_MESSAGES = 4096
MAX_CHOICES = 8
MAX_TOKENS = 1 << 31  # far more than any context; what is left of the context bounds it further
MAX_FIELD_BYTES = 16 << 10  # of a field that is not honored, as JSON
MAX_DEPTH = 64  # of such a field; those that are honored have the depth of their types

# Accepted, and of no effect on the answer.
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})

# Not supported; these values ask for nothing, so that clients which always send them work. So does null.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
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


Name = Annotated[str, Meta(max_length=MAX_NAME)]
TokenLimit = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message's content; nothing but text is read, and nothing is ever fetched."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: Name | None = None
    tool_call_id: Name | None = None

    @property
    def text_bytes(self) -> int:
        """The size of the content in UTF-8."""
        texts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return sum(len(text.encode()) for text in texts)

    def message(self) -> PromptMessage:
        """Return the message for chat templates: text parts joined with nothing between, `developer` as `system`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return PromptMessage(role, content, self.name, self.tool_call_id)


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a stream is written. Obfuscation is never added, so only its absence can be asked for."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields that are honored. None means: the model's default."""

    model: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None
    enable_thinking: bool | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens of one choice; the newer of the two names wins."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, written as one or as a list."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def generation(self) -> GenerationRequest:
        """Return what is asked for, without how the response is written."""
        variables = template_variables(self.chat_template_kwargs, self.reasoning_effort, self.enable_thinking)
        return GenerationRequest(
            model=self.model,
            prompt=Conversation(tuple(message.message() for message in self.messages), variables),
            sampling=SamplingOptions(self.temperature, self.top_p, self.top_k, self.min_p),
            max_tokens=self.token_limit,
            stops=self.stops,
            choices=self.choices,
            seed=self.seed,
        )


def _body_struct(honored: type[msgspec.Struct], others: Iterable[str], **instead: Any) -> type[msgspec.Struct]:
    """Return a struct for a body: the honored fields, some of another type `instead`, and the `others` as raw JSON.

    Decoding into types stops at the first byte that fits none, so that a hostile body costs no more than a good one.
    """
    fields: list[Any] = [(name, Raw, Raw()) for name in others]
    for field in msgspec.structs.fields(honored):
        kind, default = instead.get(field.name, field.type), UNSET if field.name in instead else field.default
        fields.append((field.name, kind) if default is msgspec.NODEFAULT else (field.name, kind, default))
    return msgspec.defstruct(f"{honored.__name__}Body", fields, forbid_unknown_fields=True, kw_only=True)


_Message = _body_struct(ChatMessage, NEUTRAL_IN_MESSAGE, content=str | list[TextPart] | None | UnsetType)
_Messages = Annotated[list[_Message], Meta(min_length=1, max_length=MAX_MESSAGES)]  # type: ignore[valid-type]
_Request = _body_struct(
    ChatRequest, (*NEUTRAL, *sorted(IGNORED)), messages=_Messages | UnsetType, chat_template_kwargs=Raw | UnsetType
)
_decoder = msgspec.json.Decoder(_Request)


def parse(body: bytes) -> ChatRequest:
    """Return a valid request.

    Raises FieldError, which names the field, for anything else, and GatewayError if the messages have more text than
    any prompt.
    """
    written = _decode(body)
    _check_others(written, NEUTRAL, "")
    _check_ignored(written)
    if written.messages is UNSET:
        raise invalid("messages", "is required")
    messages = [_message(message, f"messages[{at}].") for at, message in enumerate(written.messages)]
    arguments = checked_arguments(_value(written.chat_template_kwargs or Raw(), "chat_template_kwargs"))
    changed = {"messages": messages, "chat_template_kwargs": arguments}
    request = ChatRequest(**{**_honored(written, ChatRequest), **changed})
    check_text_bytes(sum(message.text_bytes for message in messages))
    _check_stops(request)
    _check_seed(request)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "is only allowed with stream: true")
    return request


def _decode(body: bytes) -> Any:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise validation_error(str(error), _Request.__struct_fields__, _Message.__struct_fields__) from None
    except RecursionError:
        raise FieldError(f"the body is nested more than {MAX_DEPTH} deep; send less") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FieldError(f"the body is not valid JSON ({error}); send one JSON object") from None


def _honored(written: Any, kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {name: getattr(written, name) for name in kind.__struct_fields__}


def _message(written: Any, where: str) -> ChatMessage:
    _check_others(written, NEUTRAL_IN_MESSAGE, where)
    if written.content is UNSET:
        raise invalid(f"{where}content", "is required")
    if written.content is None:
        raise invalid(f"{where}content", "is not valid: expected text or an array of text parts, got null")
    return ChatMessage(**_honored(written, ChatMessage))


def _check_others(written: Any, neutral: dict[str, tuple[Any, ...]], prefix: str) -> None:
    """Check that fields that are not supported ask for nothing."""
    for name, accepted in neutral.items():
        value = _value(getattr(written, name), prefix + name)
        if value is not None and value not in accepted:
            raise unsupported(prefix + name, f"`{prefix}{name}` is not supported; leave it out")


def _check_ignored(written: Any) -> None:
    for name in sorted(IGNORED):
        _value(getattr(written, name), name)


def _value(raw: Raw, name: str) -> Any:
    """Return the value of a field, None if it is absent. Raises FieldError if it is too large or too deep."""
    data = memoryview(raw)
    if not data:
        return None
    if len(data) > MAX_FIELD_BYTES:
        raise invalid(name, f"is larger than {MAX_FIELD_BYTES >> 10} KiB; send less")
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid(name, "is not valid JSON") from None
    if _is_deeper(value, MAX_DEPTH):
        raise invalid(name, f"is nested more than {MAX_DEPTH} deep; send less")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(item, levels - 1) for item in inner))


def _check_stops(request: ChatRequest) -> None:
    if len(request.stops) > MAX_STOPS:
        raise invalid("stop", f"may hold {MAX_STOPS} strings at most, got {len(request.stops)}")
    for at, stop in enumerate(request.stops):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            name = "stop" if isinstance(request.stop, str) else f"stop[{at}]"
            raise invalid(name, f"must have 1 to {MAX_STOP_BYTES} bytes")


def _check_seed(request: ChatRequest) -> None:
    if request.seed is not None and not -SEEDS // 2 <= request.seed < SEEDS:
        raise invalid("seed", "must be an integer of 64 bits")
