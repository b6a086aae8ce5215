"""What else may run beside a decode step, for tests of whether it has the same bits in every case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engines.engine import Chunk, FloatArray
from tests.support.engines import Forwards, tokens

NEXT = 7
"""The token id of every decode step."""

LONGER = 40
"""The slot of a prompt that is computed in the same pass."""


def decoded(
    stages: Sequence[Forwards], prompts: Mapping[int, Sequence[int]], rows: int = 64, beside: Sequence[int] = ()
) -> dict[int, FloatArray]:
    """Decode a step of each prompt, by slot, in one pass. Returns their logits (1, vocab).

    The prompts are computed `rows` tokens at a time, and the prompt `beside` in the pass itself. The slots are free
    afterwards.
    """
    for slot, prompt in prompts.items():
        for at in range(0, len(prompt), rows):
            _forward(stages, [tokens(slot, at, prompt[at : at + rows], wants_logits=False)])
    batch = [tokens(slot, len(prompt), [NEXT]) for slot, prompt in prompts.items()]
    outputs = _forward(stages, [*batch, tokens(LONGER, 0, beside, wants_logits=False)] if beside else batch)
    for slot in (*prompts, LONGER):
        for stage in stages:
            stage.release(slot)
    return dict(zip(prompts, outputs, strict=False))


def in_company(
    stages: Sequence[Forwards], prompts: Mapping[int, Sequence[int]]
) -> Iterator[tuple[str, dict[int, FloatArray]]]:
    """Yield the name of each case, and what `decoded` returns in it for some of the prompts."""
    slots = list(prompts)
    for count in range(2, len(slots) + 1):
        yield f"{count} together", decoded(stages, {slot: prompts[slot] for slot in slots[:count]})
    yield "in another order", decoded(stages, {slot: prompts[slot] for slot in reversed(slots)})
    yield "beside a prompt", decoded(stages, prompts, beside=prompts[slots[0]])
    for rows in (2, 3, 17):
        cut = {slot: prompt for slot, prompt in prompts.items() if len(prompt) % rows != 1}
        yield f"prompts cut after {rows}", decoded(stages, cut, rows)


def _forward(stages: Sequence[Forwards], batch: Sequence[Chunk]) -> list[FloatArray]:
    outputs: list[FloatArray] = []
    for stage in stages:
        outputs = stage.forward(batch)
        batch = [
            Chunk(chunk.slot, chunk.position, output, chunk.logits)
            for chunk, output in zip(batch, outputs, strict=True)
        ]
    return outputs
