"""Runs a stage's engine: micro-batches through it, stored prefix blocks into and out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar

from engines.engine import Chunk, FloatArray, InferenceEngine, SavedKV
from engines.errors import EngineError
from ring.prefix_cache import BLOCK, CacheUpdate, PrefixStore
from ring.sessions import StageSession
from ring.steps import Step

Computed = tuple[Step, FloatArray]
"""A step with its hidden states (rows, width) or logits (rows, vocab)."""

P = ParamSpec("P")
T = TypeVar("T")


class Attempt(Protocol):
    """How something is done for sessions: `ring.stage.Stage.attempt`."""

    def __call__(
        self, sessions: Sequence[StageSession], work: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T | None:
        """Return the result of the work, or None if it raised an exception and the sessions failed."""


class ModelRunner:
    """One engine, whether it is `invariant`, the prefix blocks stored beside it, and counts of what it computed.

    `logits_wanted` returns of how many of a step's last rows the logits are wanted, and raises EngineError for a step
    that cannot be. `failed_passes` counts those in a row that failed for an unknown reason.
    """

    def __init__(self, engine: InferenceEngine, logits_wanted: Callable[[Step], int], attempt: Attempt) -> None:
        self.forwards = self.rows = self.reused_rows = self.busy_ns = self.failed_passes = 0
        self.blocks: PrefixStore[SavedKV] = PrefixStore()
        self.invariant = engine.invariant
        self._engine = engine
        self._logits_wanted = logits_wanted
        self._attempt = attempt

    def run(self, batch: list[Step]) -> list[Computed]:
        """Compute a micro-batch in one pass, without the steps of sessions that failed.

        If the engine refuses several steps, each is computed alone, so that only the sessions at fault fail. Raises
        EngineError if it refuses the only step. Any other exception may be due to any of the steps.
        """
        chunks = [(step, chunk) for step in batch if (chunk := self._attempt([step.session], self._chunk, step))]
        if not chunks:
            return []
        begun = time.monotonic_ns()
        self.failed_passes += 1
        try:
            outputs = self._engine.forward([chunk for _, chunk in chunks])
        except EngineError:
            self.failed_passes = 0
            if len(chunks) == 1:
                raise
            return [one for step, _ in chunks for one in self._attempt([step.session], self.run, [step]) or []]
        self.failed_passes = 0
        steps = [step for step, _ in chunks]
        self._count(steps, begun, time.monotonic_ns() - begun)
        return list(zip(steps, outputs, strict=True))

    def restore(self, session: StageSession) -> int:
        """Copy the stored blocks that an opening names into the session's slot; return how many positions they are.

        Raises PrefixLost if a block is missing, and EngineError.
        """
        blocks = self.blocks.take(session.opening.reuse)
        for block in blocks:
            self._engine.restore(session.slot, block)
        self.reused_rows += len(blocks) * BLOCK
        return len(blocks) * BLOCK

    def save(self, session: StageSession, update: CacheUpdate) -> bool:
        """Store blocks; return True. Raises EngineError for positions that the session's slot lacks."""
        for number, start, end in update.spans:
            self.blocks.put(number, self._engine.save(session.slot, start, end))
        return True

    def release(self, session: StageSession) -> None:
        """Free a session's slot."""
        self._engine.release(session.slot)

    def _chunk(self, step: Step) -> Chunk:
        logits = self._logits_wanted(step)
        if step.rollback:
            self._engine.truncate(step.session.slot, step.position)
        return Chunk(step.session.slot, step.position, step.inputs, logits)

    def _count(self, steps: list[Step], begun_ns: int, spent_ns: int) -> None:
        self.forwards += 1
        self.busy_ns += spent_ns
        for step in steps:
            self.rows += len(step.inputs)
            step.session.touched_at = begun_ns / 1e9
            step.compute_ns += spent_ns
