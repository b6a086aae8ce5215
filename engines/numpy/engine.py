"""The numpy engine: the float32 reference that the others are checked against. Runs wherever numpy does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import EngineError
from engines.numpy.kv_cache import KVCache
from engines.numpy.llama import FEW_ROWS, Llama
from models.weights import Weights

FAMILIES = {"llama": Llama}


class NumpyEngine(SlotEngine[KVCache]):
    """Batches are truly ragged: one product per projection for all chunks' rows, attention per chunk."""

    name: ClassVar[str] = "numpy"
    exact_rows: ClassVar[int] = FEW_ROWS

    def build(self, shard: Shard, weights: Weights) -> Llama:
        """Read the shard into float32 arrays."""
        family = FAMILIES.get(weights.config.model_type)
        if family is None:
            raise EngineError(f"the numpy engine has no {weights.config.model_type!r} family; try mlx")
        return family(weights.config, shard, weights)

    def capabilities(self) -> EngineCapability:
        """numpy's version, on the CPU."""
        return EngineCapability(name=self.name, version=np.__version__, device="CPU")
