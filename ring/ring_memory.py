"""How a ring's memory for keys and values is used: which sessions run, and which prefixes are stored.

The first stage decides for the whole ring, as a state machine: sessions in, openings and cache updates out; times
(monotonic seconds) are passed in. The other stages follow in the order of its frames, so all of them hold the same
stored blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster.failures import FailureCode
from cluster.openings import Opening, SessionFailure
from ring.admission import Admission, QueueFull, TooLarge, retry_after, running_mean
from ring.prefix_cache import CacheReport, CacheUpdate, PrefixIndex

MAX_WAITING = 64
REPORT_EVERY_S = 10.0
ASSUMED_DURATION_S = 10.0  # of a session, before one has ended
FORGET_AFTER_S = 600.0  # without a session nothing stays stored, so that an idle ring takes no memory


class RingMemory:
    """The queue of a ring and the index of its prefix cache.

    `positions`: what the smallest stage's memory for keys and values holds, for running sessions and stored prefixes
    together. `sessions`: the most that run at a time. `stores`: whether prefixes are stored at all.
    """

    def __init__(self, positions: int, sessions: int, *, stores: bool = True) -> None:
        self._admission = Admission(positions, sessions, MAX_WAITING)
        self._index = PrefixIndex(positions if stores else 0)
        self._waiting: dict[int, Opening] = {}
        self._admitted_at: dict[int, float] = {}
        self._mean_s = ASSUMED_DURATION_S
        self._to_drop: tuple[int, ...] = ()  # blocks that left the index and that the stages still have to drop
        self._drop_below = 0  # each opening and update repeats it, so that one that is lost leaves nothing behind
        self._report_all_at = 0.0
        self._bounds: dict[int, int] = {}  # by stage: the most positions that it may store now
        self._sent_below = 0  # `_drop_below` as every stage knows it
        self._used_at = 0.0

    @property
    def waiting(self) -> int:
        """How many sessions wait."""
        return len(self._waiting)

    def waiting_opening(self, session_id: int) -> Opening | None:
        """Return the opening of a session that waits."""
        return self._waiting.get(session_id)

    def enqueue(self, session_id: int, opening: Opening) -> SessionFailure | None:
        """Put a session in the queue, or return why it is refused.

        Raises KeyError for a session that is here already, and ValueError for an opening that is not valid.
        """
        opening.check()
        try:
            self._admission.enqueue(session_id, opening.positions)
        except TooLarge as error:
            return SessionFailure(FailureCode.TOO_LARGE, str(error))
        except QueueFull as error:
            seconds = retry_after(self._mean_s, error.waiting, self._admission.running)
            return SessionFailure(FailureCode.QUEUE_FULL, str(error), seconds)
        self._waiting[session_id] = opening
        return None

    def admit(self, now: float) -> tuple[int, Opening] | None:
        """Admit the next session; return it with its opening for all stages: what to drop first and what to reuse."""
        session_id = self._admission.admit()
        if session_id is None:
            return None
        opening = self._waiting.pop(session_id)
        self._admitted_at[session_id] = self._used_at = now
        drop = self._take_to_drop() + self._index.shrink(self._most_stored, opening.prompt)
        reuse = self._index.match(opening.prompt)
        return session_id, msgspec.structs.replace(opening, reuse=reuse, drop=drop, drop_below=self._drop_below)

    def undo_admission(self, session_id: int, opening: Opening, now: float) -> None:
        """Remove an admitted session that did not start; the next opening or update drops what its opening dropped."""
        self.remove(session_id, now)
        self._to_drop += opening.drop

    def moved(self, now: float) -> list[tuple[int, Opening, int]]:
        """Return the waiting sessions that moved, and all every REPORT_EVERY_S, each with how many are ahead."""
        moved = self._admission.moved()
        if now >= self._report_all_at:
            self._report_all_at = now + REPORT_EVERY_S
            moved = [(session_id, ahead) for ahead, session_id in enumerate(self._admission.waiting)]
        return [(session_id, self._waiting[session_id], ahead) for session_id, ahead in moved]

    def remove(self, session_id: int, now: float) -> None:
        """Remove a session that ran or waited. A session that is not here is no error."""
        self._admission.remove(session_id)
        self._waiting.pop(session_id, None)
        if session_id in self._admitted_at:
            self._used_at = now
            self._mean_s = running_mean(self._mean_s, now - self._admitted_at.pop(session_id))

    def remove_waiting(self) -> list[tuple[int, Opening]]:
        """Remove the sessions that wait, and return them with their openings."""
        removed = list(self._waiting.items())
        self._waiting.clear()
        for session_id, _ in removed:
            self._admission.remove(session_id)
        return removed

    def store(self, tokens: Sequence[int]) -> CacheUpdate | None:
        """Return what every stage has to store of a text that all of them have computed; None if nothing is new."""
        update = self._index.store(tokens, self._most_stored)
        if update is None:
            return None
        return msgspec.structs.replace(update, drop=self._take_to_drop() + update.drop, drop_below=self._drop_below)

    def invalidate(self) -> None:
        """Reuse nothing that is stored so far, and have every stage drop it: one lacks what the others stored."""
        self._drop_below = self._index.clear()
        self._to_drop = ()

    def reported(self, stage: int, report: CacheReport) -> None:
        """Note what a stage of the ring may store, and reuse nothing that is stored so far if it lacks blocks."""
        self._bounds[stage] = report.most
        if report.lacks:
            self.invalidate()

    def trim(self, now: float) -> CacheUpdate | None:
        """Return what every stage has to drop at once, whether or not a session opens; None if nothing is due.

        That is what the memory of a stage has no room for, and everything once the ring was idle for FORGET_AFTER_S.
        """
        if not self._admission.running and now - self._used_at > FORGET_AFTER_S:
            self.invalidate()
        drop = self._take_to_drop() + self._index.shrink(self._most_stored)
        if not drop and self._sent_below == self._drop_below:
            return None
        self._sent_below = self._drop_below
        return CacheUpdate(drop=drop, drop_below=self._drop_below)

    @property
    def _most_stored(self) -> int:
        return min(self._admission.free, *self._bounds.values(), self._index.positions)

    def _take_to_drop(self) -> tuple[int, ...]:
        taken, self._to_drop = self._to_drop, ()
        return taken
