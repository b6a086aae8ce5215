"""The engine's side of a stage: micro-batches through it, stored prefixes in and out of it. No sockets, no ring."""

from __future__ import annotations

import time
from dataclasses import dataclass

from engines.engine import Chunk, EngineError, FloatArray, InferenceEngine, SavedKV
from ring.prefix_cache import BLOCK, CacheUpdate, PrefixStore
from ring.sessions import StageSession
from ring.token_sampler import TokenSampler
from ring.types import Step


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What a pass gave for a step: hidden states or logits; or the sentence that ends its session."""

    step: Step
    output: FloatArray | None
    refused: str = ""


class ModelRunner:
    """One engine, the prefix blocks stored beside it, and what it did. On the last stage `last` says what to sample."""

    def __init__(self, engine: InferenceEngine, last: TokenSampler | None) -> None:
        self.forwards = self.rows = self.reused_rows = self.busy_ns = 0
        self.blocks: PrefixStore[SavedKV] = PrefixStore()
        self._engine = engine
        self._last = last

    def run(self, batch: list[Step]) -> list[Computed]:
        """One pass for a micro-batch. Where the engine refuses it, each step alone: only who is at fault shall end."""
        begun = time.monotonic_ns()
        try:
            outputs = self._engine.forward([self._chunk(step) for step in batch])
        except EngineError as error:
            if len(batch) == 1:
                return [Computed(batch[0], None, str(error))]
            return [computed for step in batch for computed in self.run([step])]
        spent = time.monotonic_ns() - begun
        self._count(batch, spent, begun / 1e9)
        return [Computed(step, output) for step, output in zip(batch, outputs, strict=True)]

    def restore(self, session: StageSession) -> int:
        """Stored blocks into a session's slot; answers how many positions they are. Raises PrefixLost, EngineError."""
        blocks = self.blocks.take(session.opening.reuse)
        for block in blocks:
            self._engine.restore(session.slot, block)
        self.reused_rows += len(blocks) * BLOCK
        return len(blocks) * BLOCK

    def save(self, session: StageSession, keeping: CacheUpdate) -> None:
        """Drop and store blocks as the first stage said. Raises EngineError for positions that the slot lacks."""
        self.blocks.drop(keeping.drop)
        for number, start, end in keeping.spans:
            self.blocks.put(number, self._engine.save(session.slot, start, end))

    def release(self, session: StageSession) -> None:
        """Free a session's slot."""
        self._engine.release(session.slot)

    def _chunk(self, step: Step) -> Chunk:
        logits = self._last.wanted(step) if self._last else 0
        if step.rollback:
            self._engine.truncate(step.session.slot, step.position)
        return Chunk(step.session.slot, step.position, step.inputs, logits)

    def _count(self, batch: list[Step], spent_ns: int, now: float) -> None:
        self.forwards += 1
        self.busy_ns += spent_ns
        for step in batch:
            self.rows += len(step.inputs)
            step.session.touched_at = now
            step.spent_ns += spent_ns
