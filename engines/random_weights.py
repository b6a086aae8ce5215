"""Random weights of any model, for measuring speed. Reads no file.

Matrices are quantized to four bits in blocks of 32, as in the files that people run, so that an engine is measured with
the products that it will use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np

from cluster.shard import whole
from engines.engine import FloatArray
from models.families import described
from models.settings import Settings
from models.weights.checkpoint import tensor_shapes
from models.weights.quantized import BlockForm, QuantizedMatrix

BITS, BLOCK = 4, 32
LEVELS = 1 << BITS
_FORM = BlockForm(BITS, BLOCK, None)


class RandomWeights:
    """`Weights` of a model with these settings, as in a `config.json`. Each tensor is made when it is read."""

    repository = None

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.architecture = described(Settings(settings, "the random model"))
        self._shapes = tensor_shapes(self.architecture, whole("random", self.architecture.n_layers))

    def names(self) -> frozenset[str]:
        """List all tensors of the model."""
        return frozenset(self._shapes)

    def tensor(self, name: str) -> FloatArray:
        """Make a float32 array, the same for a name each time. Raises KeyError for a name of another model."""
        if (blocks := self.blocks(name)) is not None:
            return blocks.rows(slice(None))
        return _random(name).random(self._shapes[name], np.float32) - np.float32(0.5)

    def blocks(self, name: str) -> QuantizedMatrix | None:
        """Make the quantized form of what `tensor` returns; None for what is no matrix."""
        shape = self._shapes[name]
        if len(shape) != 2:
            return None
        codes = _random(name).integers(0, LEVELS, shape, np.uint8)
        # Small enough that activations stay finite.
        unit = np.float32(1 / np.sqrt(shape[1]))
        scales = np.full((shape[0], shape[1] // BLOCK), unit / LEVELS, np.float32)
        return QuantizedMatrix(codes, scales, np.full_like(scales, -unit / 2), _FORM)

    def form(self, name: str) -> BlockForm | None:
        """Return the form of what `blocks` returns."""
        return _FORM if len(self._shapes[name]) == 2 else None


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(crc32(name.encode()))
