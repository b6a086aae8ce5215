"""The numpy engine: the float32 reference against which the others are checked. Runs wherever numpy does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.numpy.kv_cache import KVCache
from engines.numpy.linear import FEW_ROWS
from engines.numpy.model import NumpyModel
from models.weights.reader import Weights


class NumpyEngine(SlotEngine[KVCache]):
    """Runs a ragged batch with one product for each projection and all rows, and attention chunk by chunk."""

    name: ClassVar[str] = "numpy"
    exact_rows: int = FEW_ROWS

    def build(self, shard: Shard, weights: Weights) -> NumpyModel:
        """Read the shard into float32 arrays."""
        return NumpyModel(weights.architecture, shard, weights)

    def capabilities(self) -> EngineCapability:
        """Return numpy's version, on the CPU."""
        return EngineCapability(name=self.name, version=np.__version__, device="CPU")
