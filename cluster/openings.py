"""What both ends of the data plane know of a session: its opening, and its failure. Values only."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.failures import FailureCode
from cluster.sampling import SamplingParams

MOST_DRAFTS = 8  # more rows than that cost a pass of their own
MOST_PROMPT = 1 << 18  # tokens; so many are hardly less than the largest frame
MOST_TOKENS = 1 << 30  # with the prompt still a position of 32 bits
MOST_BLOCKS = 1 << 17  # numbers of stored prefix blocks
LONGEST_FAILURE = 4096  # characters

TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
BlockNumbers = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=MOST_BLOCKS)]
EndPoints = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=8)]


class Opening(msgspec.Struct, frozen=True):
    """What travels once, at a session's start: from its owner to the first stage, and on from stage to stage.

    The owner ends the session; the last stage only stops feeding the ring at an `eos` token or `max_tokens`.
    `drafts` bounds the tokens that may be guessed ahead and verified in one pass. `reuse` and `drop` are numbers of
    stored prefix blocks, the first stage's word to the others.
    """

    prompt: Annotated[tuple[TokenId, ...], Meta(max_length=MOST_PROMPT)]
    prompt_tokens: Annotated[int, Meta(ge=1, le=MOST_PROMPT)]
    max_tokens: Annotated[int, Meta(ge=1, le=MOST_TOKENS)]
    eos: Annotated[frozenset[TokenId], Meta(max_length=256)]
    sampling: SamplingParams
    reply_to: EndPoints
    drafts: Annotated[int, Meta(ge=0, le=255)] = MOST_DRAFTS
    reuse: BlockNumbers = ()
    drop: BlockNumbers = ()

    @property
    def positions(self) -> int:
        """The most positions that the session can come to hold on a stage."""
        return self.prompt_tokens + self.max_tokens

    def check(self) -> None:
        """Raises ValueError where there is no prompt or no answer."""
        if not self.prompt or len(self.prompt) != self.prompt_tokens or self.max_tokens < 1:
            raise ValueError("an opening without a prompt or an answer")

    def finish_reason(self, token: int, index: int) -> str:
        """`stop`, `length`, or empty where the generation goes on after token number `index` (from 0)."""
        if token in self.eos:
            return "stop"
        return "length" if index + 1 >= self.max_tokens else ""


class Failure(msgspec.Struct, frozen=True):
    """Why a stage ended a session: a stable word, a sentence, and in how many seconds to ask again (0: no matter)."""

    code: FailureCode
    message: Annotated[str, Meta(max_length=LONGEST_FAILURE)]
    retry_after_s: Annotated[int, Meta(ge=0, le=3600)] = 0
