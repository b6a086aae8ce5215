"""The sessions of one stage, as pure state. Times are passed in; arrays and frames are not known here."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.openings import MOST_DRAFTS, Opening


@dataclass(slots=True)
class StageSession:
    """A session on one stage, and its KV slot there. `owner` is the node that opened it; "" where that stands alone.

    `waiting` counts its steps that came and were not begun.
    The first stage also counts: how much of the prompt it has sent on (`sent`), up to where every stage of the ring
    has computed (`through`), and what stands at each position (`tokens`; drafts too, until they are refuted).
    """

    session: int
    slot: int
    opening: Opening
    touched_at: float
    reply_to: str = ""  # the one of the owner's end points that can be reached from here
    owner: str = ""
    waiting: int = 0
    sent: int = 0
    through: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that the first stage has not sent on."""
        return self.opening.prompt_tokens - self.sent

    def due(self, position: int, tokens: int) -> bool:
        """Whether the ring may give back so many tokens at `position`: each time further on, and nothing left out."""
        earliest = max(self.opening.prompt_tokens, self.through + 1)
        return earliest <= position <= len(self.tokens) and 1 <= tokens <= 1 + MOST_DRAFTS

    def returned(self, position: int, tokens: list[int]) -> None:
        """The ring gave back what comes at `position`: whatever stood there and after it is void."""
        self.through = position
        self.tokens[position:] = tokens


@dataclass(slots=True)
class StageSessions:
    """All sessions of a stage, at most so many. Slots are small numbers, used again."""

    most: int = 1 << 16
    by_id: dict[int, StageSession] = field(default_factory=dict)
    reading: dict[int, StageSession] = field(default_factory=dict)  # on the first stage: those with prompt left
    _free: list[int] = field(default_factory=list)
    _next_slot: int = 0

    def open(self, session: int, opening: Opening, now: float) -> StageSession:
        """Take in a session. Raises KeyError if it is open, ValueError where there is no place."""
        if session in self.by_id:
            raise KeyError(session)
        if len(self.by_id) >= self.most:
            raise ValueError(f"{self.most} sessions are open already")
        slot = self._free.pop() if self._free else self._new_slot()
        opened = self.by_id[session] = StageSession(session, slot, opening, now)
        return opened

    def close(self, session: int) -> StageSession | None:
        """Forget a session and free its slot number; None where it is not here."""
        closed = self.by_id.pop(session, None)
        self.reading.pop(session, None)
        if closed:
            self._free.append(closed.slot)
        return closed

    def begin(self, session: StageSession, known: int) -> None:
        """The first stage takes up a prompt, of which every stage has the first `known` tokens already."""
        session.tokens = list(session.opening.prompt)
        session.sent = session.through = known
        self.reading[session.session] = session

    def read(self, session: StageSession, count: int) -> tuple[int, ...]:
        """The first stage sends on the next `count` tokens of a prompt; answers them."""
        begin, session.sent = session.sent, session.sent + count
        if not session.prompt_left:
            del self.reading[session.session]
        return session.opening.prompt[begin : session.sent]

    @property
    def decoding(self) -> int:
        """How many sessions have their whole prompt behind them; known on the first stage."""
        return len(self.by_id) - len(self.reading)

    @property
    def in_flight(self) -> int:
        """Prompt tokens of all sessions that left the first stage and are not through the ring."""
        return sum(max(session.sent - session.through, 0) for session in self.by_id.values())

    def idle_since(self, before: float) -> list[StageSession]:
        """Sessions that nothing was heard of since then, and that have no prompt waiting here."""
        idle = [session for session in self.by_id.values() if session.touched_at < before]
        return [session for session in idle if session.session not in self.reading]

    def _new_slot(self) -> int:
        self._next_slot += 1
        return self._next_slot - 1
