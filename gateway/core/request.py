"""What a client asks for, independent of any API. Values only: an API family parses a body into them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of a conversation, as chat templates know it."""

    role: str
    content: str
    name: str | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, str]:
        """Return the fields that are set."""
        optional = {"name": self.name, "tool_call_id": self.tool_call_id}
        set_fields = {key: text for key, text in optional.items() if text is not None}
        return {"role": self.role, "content": self.content} | set_fields


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that the model's chat template turns into text."""

    messages: tuple[PromptMessage, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt that is tokenized as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt that is tokenized already."""

    ids: tuple[int, ...]


Prompt = Conversation | Text | TokenIds


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to choose tokens; None leaves an option to the model's card. Ranges are those of `SamplingParams`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and the choices to generate for it.

    `model` is an id or alias of the catalogue. `max_tokens` bounds each choice, None leaves it to the gateway. A
    choice ends before the first of the strings in `stops`. `seed` is the first choice's, the others count up from it;
    None asks for a random one.
    """

    model: str
    prompt: Prompt
    sampling: SamplingOptions = SamplingOptions()
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    choices: int = 1
    seed: int | None = None
