"""The life of one generation, as pure state: what opens it, what a stage keeps of it, what its owner accepts.

No arrays, no sockets, no clock: times are handed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from cluster.sampling import SamplingParams


class Opening(msgspec.Struct, frozen=True):
    """What travels once, at a session's start: from its owner to the first stage, and on from stage to stage.

    The owner ends the session; the last stage only stops feeding the ring at an `eos` token or `max_tokens`.
    `reuse` and `drop` are numbers of stored prefix blocks, the first stage's word to the others.
    """

    prompt: tuple[int, ...]
    prompt_tokens: int
    max_tokens: int
    eos: frozenset[int]
    sampling: SamplingParams
    reply_to: tuple[str, ...]
    reuse: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()

    @property
    def positions(self) -> int:
        """The most positions that the session can come to hold on a stage."""
        return self.prompt_tokens + self.max_tokens

    def finish_reason(self, token: int, index: int) -> str:
        """`stop`, `length`, or empty where the generation goes on after token number `index` (from 0)."""
        if token in self.eos:
            return "stop"
        return "length" if index + 1 >= self.max_tokens else ""


class Failure(msgspec.Struct, frozen=True):
    """Why a stage ended a session: a stable word, a sentence, and in how many seconds to ask again (0: no matter)."""

    code: str
    message: str
    retry_after_s: int = 0


@dataclass(slots=True)
class StageSession:
    """A session on one stage: its KV slot, and on the first stage the part of the prompt not yet computed."""

    session: int
    slot: int
    opening: Opening
    touched_at: float
    pending: deque[tuple[int, tuple[int, ...]]] = field(default_factory=deque)  # (position, token ids)
    reply_to: str = ""  # the one of the owner's end points that can be reached from here


@dataclass(slots=True)
class StageSessions:
    """All sessions of a stage. Slots are small numbers, used again."""

    by_id: dict[int, StageSession] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _next_slot: int = 0

    def open(self, session: int, opening: Opening, chunk: int, now: float) -> StageSession:
        """Take in a session; its prompt is cut into chunks of at most `chunk` tokens. Raises KeyError if it is open."""
        if session in self.by_id:
            raise KeyError(session)
        slot = self._free.pop() if self._free else self._new_slot()
        pending = deque((at, opening.prompt[at : at + chunk]) for at in range(0, len(opening.prompt), chunk))
        opened = StageSession(session, slot, opening, now, pending)
        self.by_id[session] = opened
        return opened

    def close(self, session: int) -> StageSession | None:
        """Forget a session and free its slot number; None where it is not here."""
        closed = self.by_id.pop(session, None)
        if closed:
            self._free.append(closed.slot)
        return closed

    def with_prompt_left(self) -> StageSession | None:
        """The session whose next prompt chunk is due: the one served longest ago."""
        waiting = [session for session in self.by_id.values() if session.pending]
        return min(waiting, key=lambda session: session.touched_at, default=None)

    @property
    def decoding(self) -> int:
        """How many sessions have their whole prompt behind them here."""
        return sum(not session.pending for session in self.by_id.values())

    def idle_since(self, before: float) -> list[int]:
        """Sessions that nothing was heard of since then, and that have no work waiting here."""
        return [s.session for s in self.by_id.values() if s.touched_at < before and not s.pending]

    def _new_slot(self) -> int:
        self._next_slot += 1
        return self._next_slot - 1


class TokenGap(Exception):
    """A token came whose predecessors did not."""


@dataclass(slots=True)
class TokenLog:
    """The tokens of a session as its owner accepted them: each index once, in order."""

    tokens: list[int] = field(default_factory=list)

    def accept(self, index: int, token: int) -> bool:
        """True for the next token, False for one that we have already. Raises TokenGap."""
        if index < len(self.tokens):
            return False
        if index > len(self.tokens):
            raise TokenGap(f"token {index} came where {len(self.tokens)} was due")
        self.tokens.append(token)
        return True
