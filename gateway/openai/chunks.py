"""The objects of the chat API, completions and chunks, as plain dictionaries, and their JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.errors import ApiError

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Identity:
    """What is the same in every chunk of an answer. `created` is Unix seconds."""

    id: str
    created: int
    model: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Timings:
    """How long an answer took, in seconds, and on how many nodes. `seed` is that of the first choice.

    `first_token_s` runs from the end of the queue. `decode_s` runs from the first token to the last, so the first
    does not count in the rate. `cached_tokens` of the `prompt_tokens` were not computed again.
    """

    prompt_tokens: int
    cached_tokens: int
    queued_s: float
    first_token_s: float
    completion_tokens: int
    decode_s: float
    seed: int
    nodes: int

    def body(self) -> dict[str, Any]:
        """With the names of llama-server, where `prompt_n` is what was computed, and ours beside them."""
        computed = self.prompt_tokens - self.cached_tokens
        return {
            "cache_n": self.cached_tokens,
            "prompt_n": computed,
            "prompt_ms": round(self.first_token_s * 1e3, 3),
            "prompt_per_second": _rate(computed, self.first_token_s),
            "predicted_n": self.completion_tokens,
            "predicted_ms": round(self.decode_s * 1e3, 3),
            "predicted_per_second": _rate(self.completion_tokens - 1, self.decode_s),
            "queued_ms": round(self.queued_s * 1e3, 3),
            "seed": self.seed,
            "nodes": self.nodes,
        }


def role_chunk(identity: Identity, choice: int, *, usage: bool) -> dict[str, Any]:
    """The first chunk of a choice."""
    return _chunk(identity, choice, {"role": "assistant", "content": ""}, None, usage)


def text_chunk(identity: Identity, choice: int, text: str, *, usage: bool) -> dict[str, Any]:
    """A chunk of text. `usage` tells whether the stream ends with a chunk of usage; then the others say null."""
    return _chunk(identity, choice, {"content": text}, None, usage)


def finish_chunk(identity: Identity, choice: int, reason: str, *, usage: bool) -> dict[str, Any]:
    """The last chunk of a choice, with an empty delta."""
    return _chunk(identity, choice, {}, reason, usage)


def usage_chunk(identity: Identity, timings: Timings) -> dict[str, Any]:
    """The last chunk of a stream that was asked for usage; it has no choice."""
    body = _head(identity, "chat.completion.chunk")
    return {**body, "choices": [], "usage": usage_of(timings), "timings": timings.body()}


def completion(identity: Identity, choices: Sequence[tuple[str, str]], timings: Timings) -> dict[str, Any]:
    """The whole answer; `choices` are (text, finish reason)."""
    return {
        **_head(identity, "chat.completion"),
        "choices": [_choice(index, text, reason) for index, (text, reason) in enumerate(choices)],
        "usage": usage_of(timings),
        "timings": timings.body(),
    }


def usage_of(timings: Timings) -> dict[str, Any]:
    """Token counts: the prompt's once, the answers' of all choices together."""
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "total_tokens": timings.prompt_tokens + timings.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: no client trips over U+2028, and no byte is half a character."""
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def event(body: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(body) + b"\n\n"


def comment(text: str) -> bytes:
    """A server-sent comment: a sign of life that clients skip."""
    return f": exobus {' '.join(text.split())}\n\n".encode()


def error_event(error: ApiError) -> bytes:
    """How a stream tells that it failed; nothing follows it, and no choice gets a finish reason."""
    return event(error.body())


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
