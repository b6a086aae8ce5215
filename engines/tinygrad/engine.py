"""The tinygrad engine, for every device that tinygrad supports (AMD, NVIDIA, Apple, CPU)."""

from __future__ import annotations

from importlib.metadata import version
from typing import ClassVar

from tinygrad import Device, Tensor

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import EngineError
from engines.tinygrad.clang import ensure_clang
from engines.tinygrad.model import TinygradModel
from engines.tinygrad.shard_model import TinygradShardModel
from models.architecture import Architecture, Experts
from models.weights.reader import Weights


class TinygradEngine(SlotEngine[list[Tensor]]):
    """Runs on tinygrad's default device. The first two chunks of a shape wait until its kernels are compiled."""

    name: ClassVar[str] = "tinygrad"

    def __init__(self) -> None:
        super().__init__()
        try:
            ensure_clang()
        except EngineError:
            if Device.DEFAULT == "CPU":  # a GPU needs no clang
                raise

    @classmethod
    def supports(cls, architecture: Architecture) -> str | None:
        """Refuse experts, their activation, and attention sinks."""
        for part in {layer.feed_forward for layer in architecture.layers}:
            if isinstance(part, Experts):
                return "has no experts"
            if part.activation == "clipped_swiglu":
                return "has no clipped_swiglu"
        return "has no attention sinks" if architecture.heads.sinks else None

    def build(self, shard: Shard, weights: Weights) -> TinygradShardModel:
        """Read the shard into float32 tensors on the device."""
        return TinygradShardModel(TinygradModel(weights.architecture, shard, weights))

    def capabilities(self) -> EngineCapability:
        """Return tinygrad's version and its default device."""
        return EngineCapability(name=self.name, version=version("tinygrad"), device=Device.DEFAULT)
