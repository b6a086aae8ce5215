"""The MLX engine: Apple's GPUs, and CPU or CUDA elsewhere. The arithmetic is in `stage`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, ClassVar

import mlx.core as mx

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.mlx.shard_model import MlxShardModel
from models.weights import Weights


class MlxEngine(SlotEngine[list[Any]]):
    """A ragged batch is one pass over the weights; a slot is a prompt cache of mlx-lm's own.

    Loading imports mlx_lm, which may lower the process's limit of open files: give it a process of its own.
    """

    name: ClassVar[str] = "mlx"

    def build(self, shard: Shard, weights: Weights) -> MlxShardModel:
        """Read the shard into float32 MLX arrays."""
        return MlxShardModel(weights.config, shard, weights)

    def capabilities(self) -> EngineCapability:
        """mlx's version and its default device."""
        return EngineCapability(name=self.name, version=version("mlx"), device=_device())

    def close(self) -> None:
        """Drop weights and slots, and give back the buffers that MLX keeps for reuse."""
        super().close()
        mx.clear_cache()


def _device() -> str:
    if mx.default_device().type == mx.DeviceType.cpu:
        return "CPU"
    return "METAL" if mx.metal.is_available() else "CUDA"
