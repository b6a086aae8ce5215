"""Drafts of what may follow a text, looked up in the text itself (A. Saxena, prompt lookup decoding, 2023). Pure."""

from __future__ import annotations

from collections.abc import Sequence


def accepted(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """How many drafts came true before the first that did not."""
    pairs = enumerate(zip(drafts, sampled, strict=False))
    return next((at for at, (draft, token) in pairs if draft != token), min(len(drafts), len(sampled)))


class PromptLookup:
    """The text of one session."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._text = list(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on."""
        self._text.extend(tokens)

    def verified(self, proposed: int, true: int) -> None:
        """So many of the last drafts came true."""

    def propose(self, limit: int) -> tuple[int, ...]:
        """At most `limit` tokens: what followed the last two tokens where they stood last."""
        text = self._text
        for at in range(len(text) - 3, 0, -1):
            if text[at - 1 : at + 1] == text[-2:]:
                return tuple(text[at + 1 : at + 1 + limit])
        return ()
