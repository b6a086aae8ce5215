"""Which steps of which sessions a stage computes together. Pure: no arrays, no clock, no sockets.

A ring of N stages is busy everywhere only while N micro-batches are under way. So the first stage deals the M
sessions that decode into micro-batches of at most M / N steps, and the other stages keep what comes to them together:
merged once, micro-batches would travel as one for ever, and N - 1 stages would wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from ring.sessions import StageSession

StepT = TypeVar("StepT")


def micro_batch(sessions: int, stages: int) -> int:
    """The most steps of one micro-batch, so that `sessions` steps make one for each of `stages`; at least 1."""
    return max(-(-sessions // stages), 1)


def prompt_chunks(reading: Iterable[StageSession], rows: int, room: int) -> list[tuple[StageSession, int]]:
    """Whose prompts go on next, with how many tokens each: `rows` at most together, who waited longest first.

    None while there is no `room` left among the tokens that may be on their way: a fast stage would only fill the
    queue of a slow one, and decode steps would have to wait behind it. Where a prompt is cut does not depend on who
    else is here.
    """
    room = min(rows, room)
    chosen = []
    for session in sorted(reading, key=lambda session: session.touched_at):
        chunk = min(session.prompt_left, rows)
        if chunk <= room:
            chosen.append((session, chunk))
            room -= chunk
    return chosen


class UnderWay:
    """The micro-batches that the first stage dealt and that did not come back yet.

    While there is one for each stage, fewer steps than a whole micro-batch wait for others: dealt at once they would
    go round as a small one for ever, which costs a pass all the same, and the ring would have more of them than stages.
    A ring hands on in order. So when a step comes back, whatever was dealt before it is back too, or lost.
    """

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._batches: deque[set[int]] = deque()

    def may_deal(self, waiting: int, most: int) -> bool:
        """Whether `waiting` steps are to go now, where a whole micro-batch has `most`."""
        return waiting >= most or (waiting > 0 and len(self._batches) < self._stages)

    def dealt(self, sessions: Iterable[int]) -> None:
        """A micro-batch with a step of each of these leaves."""
        self._batches.append(set(sessions))

    def back(self, session: int) -> None:
        """A step came back. One that was never dealt, as a prompt's end, is no error."""
        for at, batch in enumerate(self._batches):
            if session in batch:
                for _ in range(at + 1):
                    self._batches.popleft()
                return

    def close(self, session: int) -> None:
        """Its step will not come back."""
        for batch in self._batches:
            batch.discard(session)
        self._batches = deque(batch for batch in self._batches if batch)


class MicroBatches(Generic[StepT]):
    """Steps that wait on a stage, oldest first. Of one session there is never more than one."""

    def __init__(self) -> None:
        self._whole: deque[list[StepT]] = deque()
        self._coming: list[StepT] = []

    def __bool__(self) -> bool:
        return bool(self._whole)

    def __len__(self) -> int:
        """How many steps wait."""
        return sum(len(batch) for batch in self._whole)

    @property
    def incomplete(self) -> bool:
        """Whether more steps of the micro-batch that comes in just now have been announced."""
        return bool(self._coming)

    def add(self, step: StepT, rest: int = 0) -> None:
        """Take in a step; `rest` more of its micro-batch follow."""
        self._coming.append(step)
        if rest == 0:
            self.complete()

    def skip(self, rest: int) -> None:
        """A step came whose session is over here; it counts as come, or the others would wait for it."""
        if rest == 0:
            self.complete()

    def complete(self) -> None:
        """Wait no longer for the rest: it came, or was lost."""
        if self._coming:
            self._whole.append(self._coming)
            self._coming = []

    def next_whole(self) -> list[StepT]:
        """The oldest micro-batch as it came, for a stage that is not the first. Empty where none waits."""
        return self._whole.popleft() if self._whole else []

    def next_dealt(self, most: int) -> list[StepT]:
        """The oldest steps, at most `most`, across micro-batches: the first stage deals them anew."""
        waiting = [step for batch in self._whole for step in batch]
        self._whole = deque([waiting[most:]] if waiting[most:] else [])
        return waiting[:most]
