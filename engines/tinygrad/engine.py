"""The tinygrad engine, for every device that tinygrad supports (AMD, NVIDIA, Apple, CPU)."""

from __future__ import annotations

from importlib.metadata import version
from typing import ClassVar

from tinygrad import Device, Tensor

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.errors import EngineError
from engines.tinygrad.clang import ensure_clang
from engines.tinygrad.model import TinygradModel
from engines.tinygrad.shard_model import TinygradShardModel
from models.weights.reader import Weights


class TinygradEngine(SlotEngine[list[Tensor]]):
    """Runs on tinygrad's default device. The first two chunks of a shape wait until its kernels are compiled."""

    name: ClassVar[str] = "tinygrad"

    def __init__(self, *, invariant: bool = False) -> None:
        super().__init__(invariant=invariant)
        try:
            ensure_clang()
        except EngineError:
            if Device.DEFAULT == "CPU":  # a GPU needs no clang
                raise

    def build(self, shard: Shard, weights: Weights) -> TinygradShardModel:
        """Read the shard into tensors on the device."""
        return TinygradShardModel(TinygradModel(weights.architecture, shard, weights))

    def capabilities(self) -> EngineCapability:
        """Return tinygrad's version and its default device."""
        return EngineCapability(name=self.name, version=version("tinygrad"), device=Device.DEFAULT)
