"""How long a prompt may be, and the refusal of a longer one with both numbers. Pure: knows no tokenizer's files.

A text is refused as early as its length is known to be too much, because each later step costs more: as bytes before
the model is looked up, as characters before it is tokenized, and in pieces before it is tokenized as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from bus.net.sockets import DATA_BYTES
from cluster.openings import MAX_PROMPT
from gateway.core.errors import ErrorKind, GatewayCode, GatewayError, RequestField
from models.card import ModelCard

MAX_TEXT_BYTES = 5 * MAX_PROMPT
"""In UTF-8. A token of English has four bytes or five, and one of most other languages has fewer."""

_IDS_BYTES = DATA_BYTES * 7 // 8  # of an opening; the rest is for its other fields and the numbers of stored blocks
_SHORT_ID_BYTES, _LONG_ID_BYTES = 3, 5  # as MessagePack: up to 16 bits, and beyond


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """The most tokens that a prompt may have, and what sets the limit, as a part of a sentence with its number."""

    tokens: int
    reason: str

    def check_characters(self, characters: int, longest: int) -> None:
        """Raise GatewayError if so many characters are too many tokens, of `longest` characters each at most.

        That is a lower bound: only a run of one character gets near it. What a normalizer would drop counts as well.
        """
        fewest = -(-characters // longest)
        if fewest > self.tokens:
            raise self.refusal(f"the prompt has {characters} characters, at least {fewest} tokens")

    def check_tokens(self, tokens: int) -> None:
        """Raise GatewayError if a prompt has more tokens."""
        if tokens > self.tokens:
            raise self.refusal(f"the prompt has {tokens} tokens")

    def refusal(self, size: str) -> GatewayError:
        """Return the error of a prompt that is too long; `size` is the part of the sentence that says how long."""
        return _too_long(f"{size}, and {self.reason}; shorten the messages")


def check_text_bytes(size: int) -> None:
    """Raise GatewayError if a prompt has so much text, in bytes of UTF-8, that no model takes it."""
    if size > MAX_TEXT_BYTES:
        limit = f"at most {MAX_TEXT_BYTES} are read"
        raise _too_long(f"the prompt has {size} bytes of text, and {limit}; shorten the messages")


def _too_long(sentence: str) -> GatewayError:
    code, field = GatewayCode.CONTEXT_LENGTH_EXCEEDED, RequestField.PROMPT
    return GatewayError(ErrorKind.TOO_LARGE, sentence, code=code, field=field)


def prompt_limit(card: ModelCard) -> PromptLimit:
    """Return the limit of a model's prompts: its context without one token, or what one opening carries if less."""
    id_bytes = _SHORT_ID_BYTES if card.vocab_size <= 1 << 16 else _LONG_ID_BYTES
    carried = min(MAX_PROMPT, _IDS_BYTES // id_bytes)
    if card.context_length - 1 <= carried:
        held = f"the model's context holds {card.context_length} with at least one of the answer"
        return PromptLimit(card.context_length - 1, held)
    return PromptLimit(carried, f"one request carries at most {carried}")
