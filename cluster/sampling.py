"""How a request's tokens are sampled, as a value. `engines.sampler` chooses the tokens."""

from __future__ import annotations

import msgspec

SEEDS = 2**64


class SamplingParams(msgspec.Struct, frozen=True):
    """How to choose a token. The defaults sample from the plain distribution, seed 0. Values out of range are refused.

    temperature: 0 is greedy, else logits are divided by it, at most 100. top_k: keep the k likeliest tokens, 0 keeps
    all. top_p: keep the likeliest tokens until their probabilities reach it, in 0..1, 1 keeps all. min_p: keep tokens
    with at least this share of the likeliest token's probability, 0 keeps all. seed: any integer of 64 bits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = (("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0), ("top_k", 0, 2**31))
        for field, low, high in ranges:
            value = getattr(self, field)
            if not low <= value <= high:
                raise ValueError(f"{field} must be from {low:g} to {high:g}, got {value}")
        if not -SEEDS // 2 <= self.seed < SEEDS:
            raise ValueError(f"seed must be an integer of 64 bits, got {self.seed}")
