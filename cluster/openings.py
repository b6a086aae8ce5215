"""What both ends of the data plane know of a session: its opening, and its failure."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.failures import FailureCode
from cluster.sampling import SamplingParams

MAX_DRAFTS = 8  # more rows than that cost a pass of their own
MAX_PROMPT = 1 << 18  # tokens; the gateway admits fewer if their ids would not fit a frame
MAX_TOKENS = 1 << 30  # together with the prompt still a position of 32 bits
MAX_BLOCKS = 1 << 17  # numbers of stored prefix blocks
MAX_FAILURE = 4096  # characters

TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
BlockNumbers = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=MAX_BLOCKS)]
Endpoints = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=8)]


class Opening(msgspec.Struct, frozen=True):
    """What a session begins with. It travels once: from its owner to the first stage, and on from stage to stage.

    `prompt` is all that stands before `first_position`, the position of the first token to generate. A replay is an
    opening like any other: its prompt ends with the tokens generated so far, `first_position` comes after them, and
    `max_tokens` is what is left; tokens are sampled by position, so they are the same as without the interruption.
    The owner ends the session; the last stage only stops feeding the ring at an `eos` token or after `max_tokens`.
    `drafts` bounds the tokens that may be guessed ahead and verified in one pass. `reuse` and `drop` are numbers of
    stored prefix blocks, and all blocks below `drop_below` are dropped; the first stage sets them for the others. Ids
    from `vocabulary` on have no text and are not sampled; 0 stands for all rows of the model's head.
    """

    prompt: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_PROMPT)]
    first_position: Annotated[int, Meta(ge=1, le=MAX_PROMPT)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    eos: Annotated[frozenset[TokenId], Meta(max_length=256)]
    sampling: SamplingParams
    reply_to: Endpoints
    drafts: Annotated[int, Meta(ge=0, le=255)] = MAX_DRAFTS
    reuse: BlockNumbers = ()
    drop: BlockNumbers = ()
    vocabulary: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    drop_below: Annotated[int, Meta(ge=0)] = 0

    @property
    def positions(self) -> int:
        """The most positions that the session can come to hold on a stage."""
        return self.first_position + self.max_tokens

    def check(self) -> None:
        """Raise ValueError unless a prompt ends right before `first_position`, and there is a token to generate."""
        if not self.prompt or len(self.prompt) != self.first_position or self.max_tokens < 1:
            raise ValueError(
                "an opening needs a prompt that ends right before its first position, and a token to generate"
            )

    def finish_reason(self, token: int, index: int) -> str:
        """Return `stop`, `length`, or "" if the generation continues after this token.

        `index` counts the tokens of this opening from 0, which stands at `first_position`.
        """
        if token in self.eos:
            return "stop"
        return "length" if index + 1 >= self.max_tokens else ""


class SessionFailure(msgspec.Struct, frozen=True):
    """Why a stage ended a session: a code, a sentence, and in how many seconds to try again (0: no advice)."""

    code: FailureCode
    message: Annotated[str, Meta(max_length=MAX_FAILURE)]
    retry_after_s: Annotated[int, Meta(ge=0, le=3600)] = 0
