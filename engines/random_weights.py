"""Weights of a Llama that exists nowhere, for measuring speed. Reads no file; its answers mean nothing.

Matrices are quantised in blocks of 32 with four bits, as the files that people run are, so that an engine is measured
with the products that it will use.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self
from zlib import crc32

import numpy as np

from cluster.shard import whole
from engines.engine import FloatArray
from models.checkpoint import shard_names, tensor_shape
from models.config import ModelConfig
from models.quantized import QuantizedMatrix

BITS, BLOCK = 4, 32
LEVELS = 1 << BITS


class RandomWeights:
    """As `models.weights.Weights`: every tensor of a configuration's model, made when it is asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    @property
    def nbytes(self) -> int:
        """Nothing lies on a disk."""
        return 0

    def names(self) -> frozenset[str]:
        """All checkpoint names of the model."""
        return frozenset(shard_names(self.config, whole(self.config.model_type, self.config.n_layers)))

    def tensor(self, name: str) -> FloatArray:
        """A fresh array, the same for a name each time. KeyError for a name of another model."""
        if (blocks := self.blocks(name)) is not None:
            return blocks.rows(slice(None))
        return _random(name).random(self._shape(name), np.float32) - np.float32(0.5)

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """A matrix as `tensor` has it; None for a vector."""
        shape = self._shape(name)
        if len(shape) == 1:
            return None
        codes = _random(name).integers(0, LEVELS, shape, np.uint8)
        # Small enough that activations stay finite.
        unit = np.float32(1 / np.sqrt(shape[1]))
        scales = np.full((shape[0], shape[1] // BLOCK), unit / LEVELS, np.float32)
        return QuantizedMatrix(codes, scales, np.full_like(scales, -unit / 2), BITS, None)

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = tensor_shape(self.config, name)
        if shape is None:
            raise KeyError(name)
        return shape

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(crc32(name.encode()))
