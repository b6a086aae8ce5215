"""Which sessions of a ring run and which wait, by the positions of keys and values that they may come to hold.

The first stage decides for the whole ring, with the smallest stage's number of positions; the others follow in the
order of its frames. Strictly first come, first served: a large session at the head is never overtaken, so none starves.

The memory is shared with the prefix store (`ring.prefix_cache`), and running sessions come first: the store may hold
what they leave, `Admission.free`, and all that it holds can be dropped. So admission never depends on what is stored:
after each `admit` the first stage shrinks the store to `free`, and the session's opening carries the numbers to drop.

No clock; nothing of what a session computes is known here.
"""

from __future__ import annotations

import math

MIN_RETRY_S = 1
MAX_RETRY_S = 60
NEWEST_WEIGHT = 0.2  # of the session that ended last, in the running mean


class QueueFull(Exception):
    """As many sessions wait as may; `waiting` is how many."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"all places are taken and {waiting} generations wait already; try again later")
        self.waiting = waiting


class TooLarge(Exception):
    """A session that could never run: it needs `need` positions of a ring that has `capacity`."""

    def __init__(self, need: int, capacity: int) -> None:
        super().__init__(
            f"prompt and answer may take {need} tokens and this ring has memory for {capacity}; "
            "shorten the prompt or lower max_tokens"
        )
        self.need = need
        self.capacity = capacity


class Admission:
    """A bounded queue, first come, first served, and the positions reserved for the sessions that run.

    `positions`: what the ring's memory for keys and values holds. `sessions`: the most that run at a time, at least 1.
    `queue`: the most that wait; with 0 a session runs at once or is refused.
    """

    def __init__(self, positions: int, sessions: int, queue: int) -> None:
        if positions < 0 or sessions < 1 or queue < 0:
            raise ValueError(f"no ring has {positions} positions, {sessions} sessions and a queue of {queue}")
        self.positions = positions
        self._sessions = sessions
        self._queue = queue
        self._running: dict[int, int] = {}  # session: positions reserved
        self._waiting: dict[int, int] = {}  # session: positions needed, in the order of arrival
        self._reserved = 0
        self._reported: dict[int, int] = {}  # waiting session: how many were ahead when `moved` last returned it

    @property
    def free(self) -> int:
        """The positions that no running session has reserved: the most that the prefix store may hold."""
        return self.positions - self._reserved

    @property
    def running(self) -> int:
        """How many sessions were admitted and not removed."""
        return len(self._running)

    @property
    def waiting(self) -> tuple[int, ...]:
        """The sessions that wait, in the order in which they will be admitted."""
        return tuple(self._waiting)

    def enqueue(self, session_id: int, positions: int) -> None:
        """Put a session at the end of the queue; `admit` returns it when it may run.

        A session that could run at once is never refused for the queue's length. Raises QueueFull, TooLarge, KeyError
        for a session that is here already, and ValueError for one without positions.
        """
        if session_id in self._running or session_id in self._waiting:
            raise KeyError(session_id)
        if positions < 1:
            raise ValueError(f"a session needs at least one position, not {positions}")
        if positions > self.positions:
            raise TooLarge(positions, self.positions)
        if len(self._waiting) >= self._queue and (self._waiting or not self._fits(positions)):
            raise QueueFull(len(self._waiting))
        self._waiting[session_id] = positions

    def admit(self) -> int | None:
        """Reserve the positions of the next session and return it; None if none waits or the head does not fit yet.

        Call it after each `enqueue` and `remove`, until it returns None. The store must be shrunk to `free` before the
        session takes memory.
        """
        head = next(iter(self._waiting.items()), None)
        if head is None or not self._fits(head[1]):
            return None
        session_id, positions = head
        self._remove_waiting(session_id)
        self._running[session_id] = positions
        self._reserved += positions
        return session_id

    def remove(self, session_id: int) -> None:
        """Remove a session that ran or waited. A session that is not here is no error."""
        self._reserved -= self._running.pop(session_id, 0)
        self._remove_waiting(session_id)

    def moved(self) -> list[tuple[int, int]]:
        """Return the waiting sessions, each with how many are ahead, that moved since the last call.

        Call it when `admit` has returned None, so that a session that runs at once never has a place in the queue.
        """
        ahead = {session_id: count for count, session_id in enumerate(self._waiting)}
        moved = [(session_id, count) for session_id, count in ahead.items() if self._reported.get(session_id) != count]
        self._reported = ahead
        return moved

    def _fits(self, positions: int) -> bool:
        return len(self._running) < self._sessions and positions <= self.free

    def _remove_waiting(self, session_id: int) -> None:
        self._waiting.pop(session_id, None)
        self._reported.pop(session_id, None)


def running_mean(mean: float, newest: float) -> float:
    """Return the exponentially weighted mean of the sessions' durations, after one of `newest` seconds."""
    return mean + NEWEST_WEIGHT * (newest - mean)


def retry_after(mean_s: float, ahead: int, running: int) -> int:
    """Return in how many whole seconds, 1 to 60, it makes sense to try again.

    If `running` sessions of `mean_s` seconds run side by side, one ends every mean_s / running seconds, and a place is
    free when the `ahead` that wait and one more have had theirs.
    """
    seconds = mean_s * (ahead + 1) / max(running, 1)
    return math.ceil(min(max(seconds, MIN_RETRY_S), MAX_RETRY_S))
