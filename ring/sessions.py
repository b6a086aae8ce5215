"""The sessions of one stage, as state. Times are passed in; arrays and frames are unknown here."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.openings import MAX_DRAFTS, Opening


@dataclass(frozen=True, slots=True)
class SessionProgress:
    """How far a session is on one stage, as `StageSession` counts it.

    It is `waiting` while it is in the first stage's queue, and `active` while steps of it wait or are computed.
    """

    waiting: bool = False
    active: bool = False
    frames: int = 0
    sampled: int = 0


@dataclass(slots=True)
class StageSession:
    """A session on one stage, and its KV slot there.

    `owner` is the node that opened it, "" for this one if it stands alone. `pending` counts its steps that have come
    and are not computed yet, and `frames` all of its frames but the opening. `sampled` is the position after its last
    token, on the last stage.
    The first stage also counts how much of the prompt it has sent on (`sent`) and up to where every stage of the ring
    has computed (`computed`), and keeps the token at each position (`tokens`; drafts too, until they are rejected).
    """

    id: int
    slot: int
    opening: Opening
    touched_at: float
    reply_to: str = ""  # the one of the owner's endpoints that can be reached from here
    owner: str = ""
    pending: int = 0
    frames: int = 0
    sampled: int = 0
    sent: int = 0
    computed: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that the first stage has not sent on."""
        return self.opening.first_position - self.sent

    def expects(self, position: int, count: int) -> bool:
        """Return whether the last stage may send `count` tokens at `position`: later than before, and without a gap."""
        earliest = max(self.opening.first_position, self.computed + 1)
        return earliest <= position <= len(self.tokens) and 1 <= count <= 1 + MAX_DRAFTS

    def put(self, position: int, tokens: list[int]) -> None:
        """Put the last stage's tokens at `position`. What stood there and after it were drafts, now rejected."""
        self.computed = position
        self.tokens[position:] = tokens


@dataclass(slots=True)
class StageSessions:
    """The sessions of a stage, at most `most`. Slots are small numbers that are used again."""

    most: int = 1 << 16
    by_id: dict[int, StageSession] = field(default_factory=dict)
    prefilling: dict[int, StageSession] = field(default_factory=dict)  # on the first stage: those with prompt left
    _free: list[int] = field(default_factory=list)
    _next_slot: int = 0

    def add(self, session_id: int, opening: Opening, now: float) -> StageSession:
        """Add a session and give it a slot. Raises KeyError if it is here already, ValueError if there are `most`."""
        if session_id in self.by_id:
            raise KeyError(session_id)
        if len(self.by_id) >= self.most:
            raise ValueError(f"{self.most} sessions are open already")
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._next_slot = self._next_slot, self._next_slot + 1
        added = self.by_id[session_id] = StageSession(session_id, slot, opening, now)
        return added

    def remove(self, session_id: int) -> StageSession | None:
        """Remove a session and free its slot number; return it, or None if it is not here."""
        removed = self.by_id.pop(session_id, None)
        self.prefilling.pop(session_id, None)
        if removed:
            self._free.append(removed.slot)
        return removed

    def start_prefill(self, session: StageSession, cached: int) -> None:
        """Begin to send on a prompt on the first stage; every stage has its first `cached` tokens already."""
        session.tokens = list(session.opening.prompt)
        session.sent = session.computed = cached
        self.prefilling[session.id] = session

    def take_prompt(self, session: StageSession, count: int) -> tuple[int, ...]:
        """Return the next `count` tokens of a prompt, and count them as sent."""
        begin, session.sent = session.sent, session.sent + count
        if not session.prompt_left:
            del self.prefilling[session.id]
        return session.opening.prompt[begin : session.sent]

    @property
    def decoding(self) -> int:
        """How many sessions have sent their whole prompt; known on the first stage."""
        return len(self.by_id) - len(self.prefilling)

    @property
    def in_flight(self) -> int:
        """Prompt tokens of all sessions that left the first stage and that the last one has not computed."""
        return sum(max(session.sent - session.computed, 0) for session in self.by_id.values())

    def idle_since(self, before: float) -> list[StageSession]:
        """Return the sessions without a step since then, except those that have prompt left here."""
        idle = [session for session in self.by_id.values() if session.touched_at < before]
        return [session for session in idle if session.id not in self.prefilling]
