"""The numpy engine: the float32 reference against which the others are checked. Runs wherever numpy does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import EngineError
from engines.numpy.kv_cache import KVCache
from engines.numpy.llama import FEW_ROWS, NumpyLlama
from models.weights.reader import Weights

FAMILIES = {"llama": NumpyLlama}


class NumpyEngine(SlotEngine[KVCache]):
    """Runs a ragged batch with one product for each projection and all rows, and attention chunk by chunk."""

    name: ClassVar[str] = "numpy"
    exact_rows: int = FEW_ROWS

    def build(self, shard: Shard, weights: Weights) -> NumpyLlama:
        """Read the shard into float32 arrays. Raises EngineError for an unsupported family."""
        family = FAMILIES.get(weights.config.model_type)
        if family is None:
            raise EngineError(f"the numpy engine has no {weights.config.model_type!r} family; try mlx")
        return family(weights.config, shard, weights)

    def capabilities(self) -> EngineCapability:
        """Return numpy's version, on the CPU."""
        return EngineCapability(name=self.name, version=np.__version__, device="CPU")
