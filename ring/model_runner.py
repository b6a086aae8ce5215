"""Runs a stage's engine: micro-batches through it, stored prefix blocks into and out of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from engines.engine import Chunk, EngineError, FloatArray, InferenceEngine, SavedKV
from ring.prefix_cache import BLOCK, CacheUpdate, PrefixStore
from ring.sessions import StageSession
from ring.steps import Step

Computed = tuple[Step, FloatArray | EngineError]
"""A step with its hidden states (rows, width) or logits (rows, vocab), or with the error that ends its session."""


class ModelRunner:
    """One engine, the prefix blocks stored beside it, and counts of what it computed.

    `logits_wanted` returns of how many of a step's last rows the logits are wanted, and raises EngineError for a step
    that cannot be.
    """

    def __init__(self, engine: InferenceEngine, logits_wanted: Callable[[Step], int]) -> None:
        self.forwards = self.rows = self.reused_rows = self.busy_ns = 0
        self.blocks: PrefixStore[SavedKV] = PrefixStore()
        self._engine = engine
        self._logits_wanted = logits_wanted

    def run(self, batch: list[Step]) -> list[Computed]:
        """Compute a micro-batch in one pass. If the engine refuses it, compute each step alone, so that only the
        sessions at fault end.
        """
        begun = time.monotonic_ns()
        try:
            outputs = self._engine.forward([self._chunk(step) for step in batch])
        except EngineError as error:
            if len(batch) == 1:
                return [(batch[0], error)]
            return [computed for step in batch for computed in self.run([step])]
        spent_ns, now = time.monotonic_ns() - begun, begun / 1e9
        self.forwards += 1
        self.busy_ns += spent_ns
        for step in batch:
            self.rows += len(step.inputs)
            step.session.touched_at = now
            step.compute_ns += spent_ns
        return list(zip(batch, outputs, strict=True))

    def restore(self, session: StageSession) -> int:
        """Copy the stored blocks that an opening names into the session's slot; return how many positions they are.

        Raises PrefixLost if a block is missing, and EngineError.
        """
        blocks = self.blocks.take(session.opening.reuse)
        for block in blocks:
            self._engine.restore(session.slot, block)
        self.reused_rows += len(blocks) * BLOCK
        return len(blocks) * BLOCK

    def save(self, session: StageSession, update: CacheUpdate) -> None:
        """Drop and store blocks. Raises EngineError for positions that the session's slot lacks."""
        self.blocks.drop(update.drop)
        for number, start, end in update.spans:
            self.blocks.put(number, self._engine.save(session.slot, start, end))

    def release(self, session: StageSession) -> None:
        """Free a session's slot."""
        self._engine.release(session.slot)

    def _chunk(self, step: Step) -> Chunk:
        logits = self._logits_wanted(step)
        if step.rollback:
            self._engine.truncate(step.session.slot, step.position)
        return Chunk(step.session.slot, step.position, step.inputs, logits)
