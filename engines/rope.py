"""The frequencies of rotary position embeddings, with their scaling rules. Engines apply them."""

from __future__ import annotations

import math

import numpy as np

from engines.engine import EngineError, FloatArray
from models.config import ModelConfig


def frequencies(config: ModelConfig) -> FloatArray:
    """Radians per position of each of the head_dim / 2 planes (half-split layout), float32.

    Su et al., "RoFormer", 2021; the `llama3` rule stretches long wavelengths only, as Meta's Llama 3.1 does.
    Raises EngineError for a scaling rule that is not known here.
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
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = original * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (share + (1 - share) / factor)
