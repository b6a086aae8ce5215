"""What a client asks for, independent of any API. Values only: an API family parses a body into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of a conversation, as chat templates know it."""

    role: str
    content: str
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def written(self) -> dict[str, str]:
        """The fields that are set, without the role."""
        fields = {"content": self.content, "name": self.name, "tool_call_id": self.tool_call_id}
        return {key: text for key, text in fields.items() if text is not None}

    def for_template(self) -> dict[str, str]:
        """Return the fields that are set."""
        return {"role": self.role} | self.written


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that the model's chat template turns into text. The template sees the `variables`, which are JSON."""

    messages: tuple[PromptMessage, ...]
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def written(self) -> list[Any]:
        """All that is the client's own: what the messages say, and the variables."""
        return [*(list(message.written.values()) for message in self.messages), *self.variables.values()]

    def changed(self, change: Callable[[Any], Any]) -> Conversation:
        """Return the conversation with all that is the client's own changed."""
        messages = [
            PromptMessage(message.role, **{key: change(text) for key, text in message.written.items()})
            for message in self.messages
        ]
        return Conversation(tuple(messages), {name: change(value) for name, value in self.variables.items()})


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
