"""The MLX engine, for Apple's GPUs, and for CPUs and CUDA elsewhere. The arithmetic is in `shard_model`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, ClassVar

import mlx.core as mx

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.mlx.shard_model import MlxShardModel
from models.architecture import Architecture
from models.weights.reader import Weights

FROM_GGUF = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite")
"""The families whose settings and tensors, as exobus reads them from GGUF files, are those of mlx-lm's classes."""


class MlxEngine(SlotEngine[list[Any]]):
    """Runs every family of mlx-lm. A slot's cache is a prompt cache of mlx-lm.

    Loading imports mlx_lm, which may lower the process's limit of open files, so it needs a process of its own.
    """

    name: ClassVar[str] = "mlx"

    reads_folders: ClassVar[bool] = True

    def __init__(self, upcast: bool | None = None, *, invariant: bool = False) -> None:
        """Compute in float32 with `upcast`, else in the dtype of the stored weights.

        By default that is float32 on a CPU: there, MLX 0.32 has no 16-bit product for a mixture of experts.
        """
        super().__init__(invariant=invariant)
        self._upcast = _device() == "CPU" if upcast is None else upcast

    @classmethod
    def supports(cls, architecture: Architecture) -> str | None:
        """Refuse families from GGUF files whose tensors mlx-lm has under other names, or with other numbers in them."""
        if architecture.family in FROM_GGUF:
            return None
        return f"runs the family {architecture.family!r} only from a folder of safetensors"

    def build(self, shard: Shard, weights: Weights) -> MlxShardModel:
        """Read the shard into MLX arrays. Raises EngineError for a family that mlx-lm does not have or cannot cut."""
        model = MlxShardModel(shard, weights, upcast=self._upcast)
        self.saves = model.saves
        return model

    def capabilities(self) -> EngineCapability:
        """Return mlx's version and its default device."""
        return EngineCapability(name=self.name, version=version("mlx"), device=_device())

    def close(self) -> None:
        """Drop weights and slots, and free the buffers that MLX keeps for reuse."""
        super().close()
        mx.clear_cache()


def _device() -> str:
    if mx.default_device().type == mx.DeviceType.cpu:
        return "CPU"
    return "METAL" if mx.metal.is_available() else "CUDA"
