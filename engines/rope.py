"""The rotations of rotary position embeddings, with their scaling rules. Applying them is up to the engines."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engines.engine import FloatArray
from models.architecture import Linear, Llama3, LongRope, Rope, Yarn

Doubles = npt.NDArray[np.float64]


def rotations(rope: Rope, positions: npt.NDArray[np.integer]) -> tuple[FloatArray, FloatArray]:
    """Compute what planes at (rows,) positions are rotated by: cosines and sines, (rows, dims / 2) float32 each.

    Both include the factor by which some rules multiply queries and keys.
    """
    angles = positions[:, None].astype(np.float32) * frequencies(rope)
    factor = np.float32(rope.scaling.attention_factor if isinstance(rope.scaling, Yarn | LongRope) else 1.0)
    return np.cos(angles) * factor, np.sin(angles) * factor


def frequencies(rope: Rope) -> FloatArray:
    """Compute the radians per position of each plane in the half-split layout: (dims / 2,) float32.

    Source: Su et al., "RoFormer", 2021, and for the scaling rules transformers' `modeling_rope_utils`.
    """
    plain: Doubles = rope.theta ** -(np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims)
    match rope.scaling:
        case Linear(factor=factor):
            plain = plain / factor
        case Llama3() as rule:
            plain = _llama3(plain, rule)
        case Yarn() as rule:
            plain = _yarn(plain, rope, rule)
        case LongRope(divisors=divisors):
            plain = plain / np.array(divisors)
    return plain.astype(np.float32)


def _llama3(plain: Doubles, rule: Llama3) -> Doubles:
    """Divide frequencies by `factor` below `low` rotations in the original context, by less up to `high`."""
    turns = rule.original_context * plain / (2 * math.pi)
    unscaled = np.clip((turns - rule.low_freq_factor) / (rule.high_freq_factor - rule.low_freq_factor), 0.0, 1.0)
    scaled: Doubles = plain * (unscaled + (1 - unscaled) / rule.factor)
    return scaled


def _yarn(plain: Doubles, rope: Rope, rule: Yarn) -> Doubles:
    """Divide frequencies by `factor` from the plane on that makes `beta_slow` rotations in the original context.

    Up to the plane that makes `beta_fast` they are kept, and between the two they change linearly.
    """
    first, last = (
        rope.dims * math.log(rule.original_context / (2 * math.pi * beta)) / (2 * math.log(rope.theta))
        for beta in (rule.beta_fast, rule.beta_slow)
    )
    if rule.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dims - 1)
    ramp = np.clip((np.arange(rope.dims // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    scaled: Doubles = plain * (1 - ramp) + plain / rule.factor * ramp
    return scaled
