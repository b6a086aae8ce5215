"""Products with a model's matrices, and its norms, in float32. Knows no layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.engine import FloatArray
from models.weights.reader import Weights

FEW_ROWS = 5
"""Up to this many rows go through products and attention one by one; see `project`."""


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A matrix (outputs, inputs), which may stack several of the model, and its bias (outputs,)."""

    weight: FloatArray
    bias: FloatArray | None

    @classmethod
    def stacked(cls, weights: Weights, *names: str, bias: bool) -> Linear:
        """Stack the named matrices, so that one product has their outputs side by side."""
        matrices = [weights.tensor(f"{name}.weight") for name in names]
        weight = np.concatenate(matrices) if len(matrices) > 1 else matrices[0]
        return cls(weight, np.concatenate([weights.tensor(f"{name}.bias") for name in names]) if bias else None)

    def __call__(self, rows: FloatArray) -> FloatArray:
        product = project(rows, self.weight)
        if self.bias is not None:
            product += self.bias
        return product


@dataclass(frozen=True, slots=True, eq=False)
class RMSNorm:
    """RMSNorm (Zhang and Sennrich, "Root mean square layer normalization", 2019)."""

    weight: FloatArray
    eps: float

    def __call__(self, rows: FloatArray) -> FloatArray:
        mean_square = np.einsum("ij,ij->i", rows, rows)[:, None] / np.float32(rows.shape[1])
        return np.asarray(rows * (self.weight / np.sqrt(mean_square + np.float32(self.eps))), np.float32)


def project(rows: FloatArray, weight: FloatArray) -> FloatArray:
    """Multiply (rows, inputs) with the transpose of (outputs, inputs). Returns (rows, outputs).

    A few rows are multiplied one by one: a matrix-vector product reads the weights at the speed of memory, while
    OpenBLAS's matrix product packs them first, which is worth it from about eight rows on. This also gives each row the
    same bits that it has alone.
    """
    if 1 < len(rows) <= FEW_ROWS:
        return np.stack([weight @ row for row in rows])
    return np.asarray(rows @ weight.T)
