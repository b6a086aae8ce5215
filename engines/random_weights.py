"""Random weights of a Llama, for measuring speed. Reads no file.

Matrices are quantized to four bits in blocks of 32, as in the files that people run, so that an engine is measured with
the products that it will use.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self
from zlib import crc32

import numpy as np

from cluster.shard import whole
from engines.engine import FloatArray
from models.config import ModelConfig
from models.weights.checkpoint import tensor_names, tensor_shape
from models.weights.quantized import QuantizedMatrix

BITS, BLOCK = 4, 32
LEVELS = 1 << BITS


class RandomWeights:
    """`Weights` of any configuration. Each tensor is made when it is read."""

    repository = None

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def names(self) -> frozenset[str]:
        """List all checkpoint names of the model."""
        return frozenset(tensor_names(self.config, whole(self.config.model_type, self.config.n_layers)))

    def tensor(self, name: str) -> FloatArray:
        """Make a float32 array, the same for a name each time. Raises KeyError for a name of another model."""
        if (blocks := self.blocks(name)) is not None:
            return blocks.rows(slice(None))
        return _random(name).random(self._shape(name), np.float32) - np.float32(0.5)

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """Make the quantized form of what `tensor` returns; None for a vector."""
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
        """Do nothing: no file is open."""


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(crc32(name.encode()))
