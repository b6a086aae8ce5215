"""The tinygrad engine, for every device that tinygrad supports (AMD, NVIDIA, Apple, CPU)."""

from __future__ import annotations

from importlib.metadata import version
from typing import ClassVar

from tinygrad import Device, Tensor

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import EngineError
from engines.plain import is_plain
from engines.tinygrad.clang import ensure_clang
from engines.tinygrad.llama import TinygradLlama
from engines.tinygrad.shard_model import TinygradShardModel
from models.architecture import Architecture
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
        """Refuse what the layers do not have yet."""
        return None if is_plain(architecture) else f"does not run the family {architecture.family!r} yet"

    def build(self, shard: Shard, weights: Weights) -> TinygradShardModel:
        """Read the shard into float32 tensors on the device."""
        return TinygradShardModel(TinygradLlama(weights.architecture, shard, weights))

    def capabilities(self) -> EngineCapability:
        """Return tinygrad's version and its default device."""
        return EngineCapability(name=self.name, version=version("tinygrad"), device=Device.DEFAULT)
