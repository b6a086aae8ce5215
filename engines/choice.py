"""Which engine runs a model, decided from measurements. Knows no files and no processes.

A node measures its engines once on a synthetic model (`engines.probe`). Those that are not far slower than the fastest
are then compared on each GGUF model (`engines.model_probe`), because kernels differ by the type of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from cluster.capabilities import EngineCapability
from common.limits import MAX_DETAIL, Detail, Name, Real, cut

FAR_SLOWER = 6.0
"""An engine that takes so many times as long as the fastest one is not compared on each model. If the machine is busy
during that measurement, an engine with threads that wait for each other takes three times as long as else."""

REFERENCE = "numpy"
"""The engine that is never the fastest, so it is not compared unless it is the machine's own."""

LEAN = "llamacpp"
"""The engine that computes with a GGUF file's own bytes. Others pack them anew, which takes them several times as long
to load a model, and up to twice the memory."""

PROMPT_TOKENS = 1
"""Time is counted for so many tokens of a prompt with one that is written. Chats write about as much as they read that
is new: what they said before comes from the prefix cache."""

MARGIN = 1.1
"""Engines of which none is so many times as fast as another one are equally fast, so that noise changes nothing."""


class ModelSpeed(msgspec.Struct, frozen=True):
    """How fast an engine runs a model: milliseconds of a decode step, and of a token of a long prompt.

    None if it cannot run the model; `detail` then says why.
    """

    name: Name
    decode_ms: Real | None = None
    prompt_ms: Real | None = None
    detail: Detail = ""

    @property
    def token_ms(self) -> float | None:
        """The time of a token that is written, with the share of the prompt that goes with it."""
        if self.decode_ms is None or self.prompt_ms is None:
            return None
        return self.decode_ms + PROMPT_TOKENS * self.prompt_ms

    def __str__(self) -> str:
        if self.token_ms is None:
            return f"{self.name}: {self.detail}"
        return f"{self.name} {self.decode_ms:.1f} and {self.prompt_ms:.2f} ms"


class Choice(NamedTuple):
    """The engine of a model, and a sentence with the reason."""

    engine: str
    why: str


def candidates(engines: Sequence[EngineCapability], own: str) -> list[str]:
    """Return the engines to compare on a model, the machine's `own` among them, by their speed on the synthetic one."""
    timed = sorted((engine.ms_per_layer, engine.name) for engine in engines if engine.ms_per_layer is not None)
    return [name for ms, name in timed if name == own or (name != REFERENCE and ms <= FAR_SLOWER * timed[0][0])]


def with_room(
    engines: Sequence[EngineCapability], own: str, need: Mapping[str, int], free: int
) -> tuple[str, tuple[EngineCapability, ...]]:
    """Return the engine that takes the place of the machine's `own`, and those that are left to compare.

    `need` has the bytes of a model's weights for each engine that may run it, and `free` bytes are there. Those with
    too little room are left out. If there is room for none, all stay as they are: loading then says what is missing.
    """
    fit = [name for name, weights in need.items() if weights <= free]
    if not fit:
        return own, tuple(engines)
    left = tuple(engine for engine in engines if engine.name in fit or engine.name not in need)
    return own if own in fit else fit[0], left


def choose(speeds: Sequence[ModelSpeed], own: str, refused: Mapping[str, str]) -> Choice:
    """Choose the fastest engine. Of those that are nearly as fast, LEAN comes first, then the machine's `own`.

    If none can run the model, it is `own`. `refused` are engines that cannot take this part of it, with their reasons.
    """
    able = {speed.name: speed.token_ms for speed in speeds if speed.token_ms is not None and speed.name not in refused}
    limit = MARGIN * min(able.values(), default=0.0)
    tied = sorted((name != LEAN, name != own, ms, name) for name, ms in able.items() if ms <= limit)
    best = tied[0][-1] if tied else own
    compared = [str(speed) for speed in speeds if speed.name not in refused]
    compared += [f"{name}: {reason}" for name, reason in refused.items()]
    return Choice(best, cut(f"a written and a read token of this model take: {'; '.join(compared)}", MAX_DETAIL))
