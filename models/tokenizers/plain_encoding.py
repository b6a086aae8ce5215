"""Ids of prompts in which control tokens are known apart from the text, so that no other text becomes one.

Knows a `tokenizers` tokenizer and shares its vocabulary, but knows no files and no templates.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken

from models.tokenizers.control_tokens import ControlTokens, StandIns


class PlainEncoder:
    """Encodes texts as `backend` does, except that its control tokens are text like any other.

    A token of its own stands between texts in place of each control token, so that all of them are encoded in one
    piece: a tokenizer may treat the beginning of a text differently. Nobody can write it, because it is random.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self._control = {token.content: (index, token) for index, token in added.items() if token.special}
        self.control_tokens = ControlTokens(self._control)
        self._between = f"\ufdd0{secrets.token_hex(8)}\ufdd0"
        self._plain = tokenizers.Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._plain.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._plain.pre_tokenizer = backend.pre_tokenizer
        self._plain.add_tokens([token for _, token in sorted(added.items())])
        self._plain.add_tokens([AddedToken(self._between, normalized=False)])
        self._plain.encode_special_tokens = True

    def encode(self, pieces: Sequence[str]) -> list[int]:
        """Convert text, at even places, and control tokens, at odd ones, to ids."""
        tokens = [self._control[text] for text in pieces[1::2]]
        texts = list(pieces[::2])
        for at, (_, token) in enumerate(tokens):
            texts[at] = texts[at].rstrip() if token.lstrip else texts[at]
            texts[at + 1] = texts[at + 1].lstrip() if token.rstrip else texts[at + 1]
        # `encode` would hold the GIL.
        (encoding,) = self._plain.encode_batch_fast([self._between.join(texts)], add_special_tokens=False)
        between, ids = self._plain.token_to_id(self._between), iter(index for index, _ in tokens)
        return [next(ids) if token == between else token for token in encoding.ids]


@dataclass(frozen=True, slots=True)
class StandInTokenizer:
    """Encodes rendered prompts in which characters stand in for the control tokens that users wrote."""

    encoder: PlainEncoder
    stand_ins: StandIns
    longest_token: int

    @property
    def expansion(self) -> int:
        """The most characters that one character of a prompt is encoded as."""
        return max(map(len, self.stand_ins.characters), default=1)

    def encode(self, text: str) -> list[int]:
        """Convert a prompt to ids. Each control token is one id, and what stands in for one becomes ids of its text."""
        pieces = self.encoder.control_tokens.split(text)
        pieces[::2] = map(self.stand_ins.restore, pieces[::2])
        return self.encoder.encode(pieces)

    def count(self, text: str) -> int:
        """Count the ids of a prompt."""
        return len(self.encode(text))
