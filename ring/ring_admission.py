"""What the first stage decides for the whole ring: who may enter, what of a prompt is stored, what will be.

Pure: no arrays, no sockets; times (monotonic seconds) are handed in. The other stages obey in the order of the first
one's frames, so all of them hold the same stored blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster.failures import FailureCode
from cluster.openings import Failure, Opening
from ring.admission import Admission, QueueFull, TooLarge, retry_after, running_mean
from ring.prefix_cache import CacheUpdate, PrefixIndex

MOST_WAITING = 64
TELL_AGAIN_S = 10.0
FIRST_GUESS_S = 10.0  # of how long a session takes, before one has ended


class RingAdmission:
    """The queue of a ring and the index of its prefix cache.

    `positions`: what the smallest stage's memory for keys and values holds, for live sessions and stored prefixes
    together. `sessions`: the most that live at a time.
    """

    def __init__(self, positions: int, sessions: int) -> None:
        self._admission = Admission(positions, sessions, MOST_WAITING)
        self._index = PrefixIndex(positions)
        self._waiting: dict[int, Opening] = {}
        self._begun: dict[int, float] = {}
        self._mean_s = FIRST_GUESS_S
        self._void: tuple[int, ...] = ()
        self._tell_again_at = 0.0

    @property
    def waiting(self) -> int:
        """How many sessions wait."""
        return len(self._waiting)

    def opening(self, session: int) -> Opening | None:
        """The opening of a session that waits."""
        return self._waiting.get(session)

    def ask(self, session: int, opening: Opening) -> Failure | None:
        """Put a session in the queue, or say why not. KeyError for one that is here, ValueError for no prompt."""
        opening.check()
        try:
            self._admission.ask(session, opening.positions)
        except TooLarge as error:
            return Failure(FailureCode.TOO_LARGE, str(error))
        except QueueFull as error:
            return Failure(
                FailureCode.QUEUE_FULL, str(error), retry_after(self._mean_s, error.waiting, self._admission.live)
            )
        self._waiting[session] = opening
        return None

    def admit(self, now: float) -> tuple[int, Opening] | None:
        """The next session that may run, and its opening for all stages: what to drop first and what to reuse."""
        session = self._admission.admit()
        if session is None:
            return None
        opening = self._waiting.pop(session)
        self._begun[session] = now
        drop = self._take_void() + self._index.shrink(self._admission.free, opening.prompt)
        return session, msgspec.structs.replace(opening, reuse=self._index.match(opening.prompt), drop=drop)

    def take_back(self, session: int, opening: Opening, now: float) -> None:
        """An admitted session did not begin: what its opening dropped is for the next one to tell the other stages."""
        self.leave(session, now)
        self._void += opening.drop

    def places(self, now: float) -> list[tuple[int, Opening, int]]:
        """The waiting sessions to be told how many are ahead: where that has changed, and all of them now and then."""
        places = self._admission.moved()
        if now >= self._tell_again_at:
            self._tell_again_at = now + TELL_AGAIN_S
            places = [(session, self._admission.ahead(session)) for session in self._admission.waiting]
        return [(session, self._waiting[session], ahead) for session, ahead in places]

    def leave(self, session: int, now: float) -> None:
        """A session is over, whether it ran or waited. One that is not here is no error."""
        self._admission.leave(session)
        self._waiting.pop(session, None)
        if session in self._begun:
            self._mean_s = running_mean(self._mean_s, now - self._begun.pop(session))

    def leave_waiting(self) -> list[tuple[int, Opening]]:
        """Nobody will be let in any more: answers who waited."""
        gone = list(self._waiting.items())
        for session, _ in gone:
            self.leave(session, 0.0)
        return gone

    def keep(self, tokens: Sequence[int]) -> CacheUpdate | None:
        """What every stage shall store of a text that all of them have computed; None where nothing is new."""
        keeping = self._index.keep(tokens, self._admission.free)
        if keeping is None:
            return None
        return msgspec.structs.replace(keeping, drop=self._take_void() + keeping.drop)

    def forget(self) -> None:
        """A stage failed a session and may lack what the others stored: nothing that is stored counts any more."""
        self._void += self._index.clear()

    def _take_void(self) -> tuple[int, ...]:
        void, self._void = self._void, ()
        return void
