"""The ONNX Runtime engine: the CPU kernels of onnxruntime. The graph is in `llama`, the running of it in `stage`."""

from __future__ import annotations

from typing import ClassVar

import onnxruntime

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import EngineError, FloatArray
from engines.onnx.llama import llama_graph
from engines.onnx.shard_model import OnnxShardModel
from engines.precision import Precision
from models.quantized import QuantizedMatrix
from models.weights import Weights

FAMILIES = {"llama": llama_graph}
HEAD_DIMS = 16
"""Attention's kernel wants head sizes that are multiples of this."""


class OnnxEngine(SlotEngine[int]):
    """Runs on the CPU. `exact` is the reference's float32, `fast` decodes about twice as fast.

    On the default model's own answers `fast` makes the choice that `exact` makes at 96 tokens of 100, and its
    probabilities are 0.003 nats from the exact ones (Kullback and Leibler, mean over the tokens).
    """

    name: ClassVar[str] = "onnx"
    exact_rows: ClassVar[int] = 64

    def __init__(self, precision: Precision = "fast") -> None:
        super().__init__()
        self._precision: Precision = precision

    def build(self, shard: Shard, weights: Weights) -> OnnxShardModel:
        """Make the shard's graph and give it to the runtime."""
        config = weights.config
        family = FAMILIES.get(config.model_type)
        if family is None:
            raise EngineError(f"the onnx engine has no {config.model_type!r} family; try mlx")
        if config.head_dim % HEAD_DIMS:
            raise EngineError(
                f"the onnx engine needs heads of a multiple of {HEAD_DIMS}, not {config.head_dim}; try numpy"
            )
        graph = family(config, shard, weights, self._precision)
        return OnnxShardModel(config, shard, graph, _embedding(weights) if shard.is_first else None)

    def capabilities(self) -> EngineCapability:
        """onnxruntime's version, on the CPU, with the precision in `detail`."""
        return EngineCapability(name=self.name, version=onnxruntime.__version__, device="CPU", detail=self._precision)


def _embedding(weights: Weights) -> FloatArray | QuantizedMatrix:
    """The embedding in the smallest form that loses nothing."""
    name = "model.embed_tokens.weight"
    return weights.blocks(name) or weights.tensor(name)
