"""Which steps of which sessions a stage computes together.

A ring of N stages is busy everywhere only while N micro-batches are in flight. So the first stage deals the M
sessions that decode into micro-batches of at most M / N steps, and the other stages keep together what comes together:
merged once, micro-batches would stay merged for ever, and N - 1 stages would wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from ring.prefix_cache import BLOCK
from ring.sessions import StageSession

StepT = TypeVar("StepT")


def micro_batch_size(sessions: int, stages: int) -> int:
    """Return the most steps of one micro-batch, so that `sessions` steps make one for each of `stages`; at least 1."""
    return max(-(-sessions // stages), 1)


def prompt_chunks(prefilling: Iterable[StageSession], rows: int, room: int) -> list[tuple[StageSession, int]]:
    """Return the sessions with prompts that continue next, each with how many tokens: `rows` at most together.

    The session that waited longest comes first. A chunk is left out unless there is `room` for it among the tokens that
    may be in flight: a fast stage would only fill the queue of a slow one, and decode steps would wait behind it.
    Where a prompt is cut does not depend on the other sessions, so its numbers do not either. No cut leaves a lone
    token, which engines compute in another way than several. `rows` is a multiple of BLOCK, at least two of it; so cuts
    are at multiples of BLOCK, wherever the stored beginning of a prompt ends.
    """
    room = min(rows, room)
    chosen = []
    for session in sorted(prefilling, key=lambda session: session.touched_at):
        chunk = min(session.prompt_left, rows)
        if session.prompt_left == chunk + 1:
            chunk -= BLOCK
        if chunk <= room:
            chosen.append((session, chunk))
            room -= chunk
    return chosen


class InFlightBatches:
    """The micro-batches that the first stage dealt and that have not come back.

    While there is one for each stage, fewer steps than a whole micro-batch wait for others: dealt at once they would
    stay a small micro-batch for ever, which costs a pass all the same, and there would be more of them than stages.
    A ring keeps the order. So when a step comes back, whatever was dealt before it is back too, or lost.
    """

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._batches: deque[set[int]] = deque()

    def may_deal(self, waiting: int, size: int) -> bool:
        """Return whether to deal a micro-batch now that `waiting` steps wait; a whole one has `size`."""
        return waiting >= size or (waiting > 0 and len(self._batches) < self._stages)

    def add(self, sessions: Iterable[int]) -> None:
        """Add a micro-batch with a step of each of these sessions."""
        self._batches.append(set(sessions))

    def returned(self, session_id: int) -> None:
        """Remove the micro-batch of a step that is back, and those before it. A step never dealt is no error."""
        for at, batch in enumerate(self._batches):
            if session_id in batch:
                for _ in range(at + 1):
                    self._batches.popleft()
                return

    def discard(self, session_id: int) -> None:
        """Wait no longer for the step of a session that is over."""
        for batch in self._batches:
            batch.discard(session_id)
        self._batches = deque(batch for batch in self._batches if batch)


class MicroBatches(Generic[StepT]):
    """Steps that wait on a stage, oldest first. There is never more than one of a session."""

    def __init__(self) -> None:
        self._complete: deque[list[StepT]] = deque()
        self._incoming: list[StepT] = []

    def __bool__(self) -> bool:
        return bool(self._complete)

    def __len__(self) -> int:
        """Return how many steps wait."""
        return sum(len(batch) for batch in self._complete)

    @property
    def incomplete(self) -> bool:
        """Whether a micro-batch has begun to come in and more of its steps have been announced."""
        return bool(self._incoming)

    def add(self, step: StepT, rest: int = 0) -> None:
        """Add a step; `rest` more of its micro-batch follow."""
        self._incoming.append(step)
        if rest == 0:
            self.complete()

    def skip_step(self, rest: int) -> None:
        """Count a step of a session that is over as received, or the others of its micro-batch would wait for it."""
        if rest == 0:
            self.complete()

    def complete(self) -> None:
        """Wait no longer for the rest of the micro-batch: it came, or was lost."""
        if self._incoming:
            self._complete.append(self._incoming)
            self._incoming = []

    def pop_batch(self) -> list[StepT]:
        """Remove and return the oldest micro-batch as it came, for a stage that is not the first. May be empty."""
        return self._complete.popleft() if self._complete else []

    def pop_steps(self, most: int) -> list[StepT]:
        """Remove and return the oldest steps, at most `most`, across micro-batches: the first stage deals them anew."""
        waiting = [step for batch in self._complete for step in batch]
        self._complete = deque([waiting[most:]] if waiting[most:] else [])
        return waiting[:most]
