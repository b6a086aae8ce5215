"""Weights of a Llama that exists nowhere, for measuring speed. Reads no file; its answers mean nothing."""

from __future__ import annotations

from types import TracebackType
from typing import Self
from zlib import crc32

import numpy as np

from cluster.shard import whole
from engines.engine import FloatArray
from models.checkpoint import shard_names, tensor_shape
from models.config import ModelConfig


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
        shape = tensor_shape(self.config, name)
        if shape is None:
            raise KeyError(name)
        random = np.random.default_rng(crc32(name.encode()))
        # Small enough that activations stay finite.
        return (random.random(shape, np.float32) - np.float32(0.5)) / np.float32(np.sqrt(shape[-1]))

    def blocks(self, name: str) -> None:
        """Nothing: these tensors are not quantised."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""
