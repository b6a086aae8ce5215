"""The objects of the chat API, completions and chunks, as plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.events import GenerationFinished, Usage
from gateway.http.json_response import encode_json

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Identity:
    """What all chunks of a response have in common. `created` is Unix seconds."""

    id: str
    created: int
    model: str
    fingerprint: str


def role_chunk(identity: Identity, choice: int, *, usage: bool) -> dict[str, Any]:
    """Return the first chunk of a choice."""
    return _chunk(identity, choice, {"role": "assistant", "content": ""}, None, usage)


def text_chunk(identity: Identity, choice: int, text: str, *, usage: bool) -> dict[str, Any]:
    """Return a chunk of text. `usage` says whether a chunk of usage ends the stream; the others have null then."""
    return _chunk(identity, choice, {"content": text}, None, usage)


def finish_chunk(identity: Identity, choice: int, reason: str, *, usage: bool) -> dict[str, Any]:
    """Return the last chunk of a choice, with an empty delta."""
    return _chunk(identity, choice, {}, reason, usage)


def usage_chunk(identity: Identity, end: GenerationFinished) -> dict[str, Any]:
    """Return the last chunk of a stream that was asked for usage; it has no choice."""
    body = _head(identity, "chat.completion.chunk")
    return {**body, "choices": [], "usage": usage_body(end.usage), "timings": timings_body(end)}


def completion(identity: Identity, choices: Sequence[tuple[str, str]], end: GenerationFinished) -> dict[str, Any]:
    """Return the whole completion; `choices` are (text, finish reason)."""
    return {
        **_head(identity, "chat.completion"),
        "choices": [_choice(index, text, reason) for index, (text, reason) in enumerate(choices)],
        "usage": usage_body(end.usage),
        "timings": timings_body(end),
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the token counts: the prompt's once, and the answers' of all choices together."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def timings_body(end: GenerationFinished) -> dict[str, Any]:
    """Return llama-server's `timings`, with additional fields.

    `prompt_n` counts what was computed, not what was cached. The first token does not count in the decode rate, as
    the time runs from it.
    """
    usage, timings = end.usage, end.timings
    computed = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": round(timings.first_token_s * 1e3, 3),
        "prompt_per_second": _rate(computed, timings.first_token_s),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(timings.decode_s * 1e3, 3),
        "predicted_per_second": _rate(usage.completion_tokens - 1, timings.decode_s),
        "queued_ms": round(timings.queued_s * 1e3, 3),
        "seed": end.seed,
        "nodes": end.nodes,
    }


def event(body: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + encode_json(body) + b"\n\n"


def _chunk(identity: Identity, choice: int, delta: dict[str, str], reason: str | None, usage: bool) -> dict[str, Any]:
    body = _head(identity, "chat.completion.chunk")
    body["choices"] = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
    if usage:
        body["usage"] = None
    return body


def _choice(index: int, text: str, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _head(identity: Identity, kind: str) -> dict[str, Any]:
    return {
        "id": identity.id,
        "object": kind,
        "created": identity.created,
        "model": identity.model,
        "system_fingerprint": identity.fingerprint,
    }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0
