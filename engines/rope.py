"""The frequencies of rotary position embeddings, with their scaling rules. Applying them is up to the engines."""

from __future__ import annotations

import math

import numpy as np

from engines.engine import EngineError, FloatArray
from models.config import ModelConfig


def frequencies(config: ModelConfig) -> FloatArray:
    """Compute the radians per position of each plane in the half-split layout: (head_dim / 2,) float32.

    Source: Su et al., "RoFormer", 2021. The `llama3` rule stretches only long wavelengths, as Meta's Llama 3.1 does.
    Raises EngineError for an unknown scaling rule.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    plain = config.rope_theta**-exponents
    scaling = config.rope_scaling or {}
    rule = scaling.get("rope_type", "default")
    if rule == "default":
        return plain.astype(np.float32)
    if rule == "linear":
        return (plain / float(scaling["factor"])).astype(np.float32)
    if rule == "llama3":
        return _llama3(plain, scaling).astype(np.float32)
    raise EngineError(f"rope scaling {rule!r} is not known to this engine; choose a model with llama3 or no scaling")


def _llama3(plain: np.ndarray, scaling: dict[str, float]) -> np.ndarray:
    """Divide frequencies by `factor` below `low` rotations in the original context, by less up to `high`."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rotations = original * plain / (2 * math.pi)
    unscaled = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return plain * (unscaled + (1 - unscaled) / factor)
