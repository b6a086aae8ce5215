"""Sessions on a ring of one engine and on the reference, for tests of ragged batches on any engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engines.engine import Chunk, FloatArray
from tests.support.engines import Forwards


class Sessions:
    """Slots of all stages with the tokens that each holds; the reference computes all tokens of a slot each time."""

    def __init__(self, stages: Sequence[Forwards], reference: Forwards) -> None:
        self.stages = stages
        self.reference = reference
        self.held: dict[int, list[int]] = {}

    def check(self, batch: Mapping[int, Sequence[int]], logits: int = 2, atol: float = 2e-5) -> None:
        """Run the tokens of each slot in one batch, and compare the last `logits` rows of each with the reference."""
        counts = [min(logits, len(tokens)) for tokens in batch.values()]
        inputs: list[np.ndarray] = [np.array(tokens, np.int32) for tokens in batch.values()]
        for stage in self.stages:
            chunks = [
                Chunk(slot, len(self.held.get(slot, [])), rows, count)
                for slot, rows, count in zip(batch, inputs, counts, strict=True)
            ]
            inputs = list(stage.forward(chunks))
        for slot, answer in zip(batch, inputs, strict=True):
            self.held[slot] = [*self.held.get(slot, []), *batch[slot]]
            assert len(answer) == min(logits, len(batch[slot]))
            np.testing.assert_allclose(answer, self._expected(slot)[-len(answer) :], atol=atol)

    def truncate(self, slot: int, position: int) -> None:
        for stage in self.stages:
            stage.truncate(slot, position)
        del self.held[slot][position:]

    def release(self, slot: int) -> None:
        for stage in self.stages:
            stage.release(slot)
        del self.held[slot]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Save positions of one slot and continue another with them."""
        for stage in self.stages:
            stage.restore(target, stage.save(source, start, end))
        self.held[target] = [*self.held.get(target, []), *self.held[source][start:end]]

    def _expected(self, slot: int) -> FloatArray:
        tokens = np.array(self.held[slot], np.int32)
        answer = self.reference.forward([Chunk(0, 0, tokens, len(tokens))])[0]
        self.reference.release(0)
        return answer


def check_many_batches(sessions: Sessions, prompt: Sequence[int]) -> None:
    """Check ragged batches in which sessions join, leave, are truncated, copy another one and reuse a slot."""
    sessions.check({0: prompt, 1: [8], 2: prompt[:3]})
    sessions.check({0: [4], 1: [9], 2: [250], 3: [*prompt, *prompt, *prompt]})
    sessions.truncate(0, 5)
    sessions.release(1)
    sessions.copy(3, 4, 0, 20)
    sessions.copy(3, 4, 20, 30)
    sessions.check({4: [7], 3: [6, 5, 4], 0: [3], 1: prompt[:4], 2: [1]})
    sessions.check({1: [1], 3: [2], 4: [3]})
