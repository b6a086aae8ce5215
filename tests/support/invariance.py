"""What else may run beside a decode step, for tests of whether it has the same bits in every case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from engines.engine import Chunk, FloatArray
from tests.support.engines import Forwards, tokens

NEXT = 7
"""The token id of every decode step."""

LONGER, GONE, LEFT = 40, 41, 42
"""The slots of a prompt that is computed in the same pass, and of two that were computed before."""

BLOCK = 32
"""Positions of a stored part of a prompt."""


def assert_invariant(
    stages: Sequence[Forwards], prompts: Mapping[int, Sequence[int]], cuts: Sequence[int] = (2, 3, 17, 32)
) -> None:
    """Compare the bits of each prompt's next step alone with those in every other case."""
    alone = {slot: decoded(stages, {slot: prompt})[slot] for slot, prompt in prompts.items()}
    for case, rows in in_company(stages, prompts, cuts):
        for slot, row in rows.items():
            np.testing.assert_array_equal(row, alone[slot], err_msg=f"slot {slot}, {case}")


def decoded(
    stages: Sequence[Forwards],
    prompts: Mapping[int, Sequence[int]],
    rows: int = 64,
    beside: Sequence[int] = (),
    stored: bool = False,
) -> dict[int, FloatArray]:
    """Decode a step of each prompt, by slot, in one pass. Returns their logits (1, vocab).

    The prompts are computed `rows` tokens at a time, and the prompt `beside` in the pass itself. With `stored` the
    slots begin with copies of what was computed in other slots. All these slots are free afterwards.
    """
    for slot, prompt in prompts.items():
        if stored:
            _prefill(stages, GONE, prompt, rows)
        copied = _copy_blocks(stages, slot, (len(prompt) - 2) // BLOCK) if stored else 0
        _prefill(stages, slot, prompt, rows, copied)
    batch = [tokens(slot, len(prompt), [NEXT]) for slot, prompt in prompts.items()]
    outputs = _forward(stages, [*batch, tokens(LONGER, 0, beside, wants_logits=False)] if beside else batch)
    _release(stages, *prompts, LONGER)
    return dict(zip(prompts, outputs, strict=False))


def in_company(
    stages: Sequence[Forwards], prompts: Mapping[int, Sequence[int]], cuts: Sequence[int]
) -> Iterator[tuple[str, dict[int, FloatArray]]]:
    """Yield the name of each case, and what `decoded` returns in it for some of the prompts."""
    slots = list(prompts)
    for count in range(2, len(slots) + 1):
        yield f"{count} together", decoded(stages, {slot: prompts[slot] for slot in slots[:count]})
    yield "in another order", decoded(stages, {slot: prompts[slot] for slot in reversed(slots)})
    yield "beside a prompt", decoded(stages, prompts, beside=prompts[slots[0]])
    for rows in cuts:
        cut = {slot: prompt for slot, prompt in prompts.items() if len(prompt) % rows != 1}
        yield f"prompts cut after {rows}", decoded(stages, cut, rows)
    for slot in (GONE, LEFT):
        _prefill(stages, slot, prompts[slots[0]], 64)
    _release(stages, GONE)
    yield "in memory with gaps", decoded(stages, prompts)
    _release(stages, LEFT)
    yield "after stored positions", decoded(stages, prompts, stored=True)


def _prefill(stages: Sequence[Forwards], slot: int, prompt: Sequence[int], rows: int, start: int = 0) -> None:
    for at in range(start, len(prompt), rows):
        _forward(stages, [tokens(slot, at, prompt[at : at + rows], wants_logits=False)])


def _copy_blocks(stages: Sequence[Forwards], slot: int, count: int) -> int:
    """Copy so many blocks of the slot GONE to another one, and free it. Returns the positions copied."""
    for stage in stages:
        blocks = [stage.save(GONE, at * BLOCK, (at + 1) * BLOCK) for at in range(count)]
        stage.release(GONE)
        for block in blocks:
            stage.restore(slot, block)
    return count * BLOCK


def _release(stages: Sequence[Forwards], *slots: int) -> None:
    for slot in slots:
        for stage in stages:
            stage.release(slot)


def _forward(stages: Sequence[Forwards], batch: Sequence[Chunk]) -> list[FloatArray]:
    outputs: list[FloatArray] = []
    for stage in stages:
        outputs = stage.forward(batch)
        batch = [
            Chunk(chunk.slot, chunk.position, output, chunk.logits)
            for chunk, output in zip(batch, outputs, strict=True)
        ]
    return outputs
