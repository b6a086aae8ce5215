"""The feed-forward networks of a description in numpy: one for all rows, or experts of which each row has a few."""

from __future__ import annotations

import math

import numpy as np

from engines.engine import FloatArray
from engines.numpy.linear import Linear
from models.architecture import SWIGLU_ALPHA, SWIGLU_LIMIT, Activation, Experts, Mlp
from models.weights.reader import Weights


class GatedMlp:
    """A gated feed-forward network; gate and up are one product."""

    def __init__(self, gate_up: Linear, down: Linear, activation: Activation) -> None:
        self._gate_up, self._down, self._activation = gate_up, down, activation

    @classmethod
    def read(cls, mlp: Mlp, weights: Weights, prefix: str) -> GatedMlp:
        """Read the network of one layer."""
        gate_up = Linear.stacked(weights, f"{prefix}.gate_proj", f"{prefix}.up_proj", bias=mlp.bias)
        return cls(gate_up, Linear.stacked(weights, f"{prefix}.down_proj", bias=mlp.bias), mlp.activation)

    def __call__(self, rows: FloatArray) -> FloatArray:
        gate, up = np.split(self._gate_up(rows), 2, axis=1)
        return self._down(gated(self._activation, gate, up))


class MixtureOfExperts:
    """A router, and the experts that it chooses for each row. The rows of an expert are one product."""

    def __init__(self, experts: Experts, weights: Weights, prefix: str) -> None:
        self._spec = experts
        self._router = Linear.stacked(weights, f"{prefix}.gate", bias=experts.router_bias)
        names = [f"{prefix}.experts.{part}_proj" for part in ("gate", "up", "down")]
        gate, up, down = (weights.tensor(f"{name}.weight") for name in names)
        gate_up = np.concatenate((gate, up), axis=1)
        biases = [weights.tensor(f"{name}.bias") for name in names if experts.expert.bias]
        self._experts = [
            GatedMlp(
                Linear(gate_up[index], np.concatenate([bias[index] for bias in biases[:2]]) if biases else None),
                Linear(down[index], biases[2][index] if biases else None),
                experts.expert.activation,
            )
            for index in range(experts.count)
        ]

    def __call__(self, rows: FloatArray) -> FloatArray:
        logits = self._router(rows)
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, : self._spec.top_k]
        shares = np.take_along_axis(logits, chosen, axis=1)
        whole = shares if self._spec.norm_top_k else logits
        largest = shares[:, :1]
        shares = np.exp(shares - largest) / np.exp(whole - largest).sum(axis=1, keepdims=True)
        added = np.zeros_like(rows)
        for expert in np.unique(chosen):
            at, place = np.nonzero(chosen == expert)
            added[at] += shares[at, place, None] * self._experts[expert](rows[at])
        return added


def feed_forward(spec: Mlp | Experts, weights: Weights, prefix: str) -> GatedMlp | MixtureOfExperts:
    """Read the feed-forward network of one layer."""
    return GatedMlp.read(spec, weights, prefix) if isinstance(spec, Mlp) else MixtureOfExperts(spec, weights, prefix)


def gated(activation: Activation, gate: FloatArray, up: FloatArray) -> FloatArray:
    """Multiply the activation of `gate` with `up`."""
    match activation:
        case "silu":
            return gate * sigmoid(gate) * up
        case "gelu_tanh":
            inner = np.float32(math.sqrt(2 / math.pi)) * (gate + np.float32(0.044715) * gate**3)
            return np.asarray(np.float32(0.5) * gate * (1 + np.tanh(inner)) * up, np.float32)
        case "clipped_swiglu":
            gate = np.minimum(gate, np.float32(SWIGLU_LIMIT))
            up = np.clip(up, np.float32(-SWIGLU_LIMIT), np.float32(SWIGLU_LIMIT))
            return gate * sigmoid(np.float32(SWIGLU_ALPHA) * gate) * (up + 1)


def sigmoid(values: FloatArray) -> FloatArray:
    """Compute the logistic function by tanh, since exp could overflow and warn."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)
