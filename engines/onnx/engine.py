"""The ONNX Runtime engine, with onnxruntime's CPU kernels. `model` builds the graph and `shard_model` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnxruntime

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import KV_BYTES
from engines.onnx.batch_layout import Padding
from engines.onnx.graph import Graph
from engines.onnx.model import model_graph
from engines.onnx.row_check import fewest_rows
from engines.onnx.shard_model import OnnxShardModel
from engines.settings import Precision
from models.architecture import Architecture, Experts, Mlp
from models.weights.checkpoint import EMBEDDING
from models.weights.quantize_on_load import QuantizeOnLoad
from models.weights.reader import Weights, open_weights
from models.weights.rounded_file import RoundedFile

EXACT_ROWS = 64
"""Rows of a chunk with the bits that each has alone, if the processor's kernels allow any."""

HEAD_DIMS = 16
"""The attention kernel needs head sizes that are multiples of this."""


class OnnxEngine(SlotEngine[int]):
    """Runs on the CPU. `exact` computes in float32 as the reference does; `fast` decodes about twice as fast.

    On the default model's own answers `fast` prefers the same token as `exact` at 96 of 100 positions, and the mean
    Kullback-Leibler divergence of its probabilities is 0.003 nats. `invariant` has the products of `fast`. The
    attention kernel gives one step other bits than several, so rows are exact either in a chunk or beside other slots.
    With `bits`, `fast` and `invariant` also round the matrices of a file that are floats, to blocks of so many bits.
    """

    name: ClassVar[str] = "onnx"

    def __init__(self, precision: Precision = "fast", bits: int = 0) -> None:
        super().__init__()
        self._precision: Precision = precision
        self._bits = 0 if precision == "exact" else bits
        self.invariant = precision == "invariant"
        exact = precision == "exact" or (precision == "fast" and max(map(fewest_rows, (4, 8))) == 1)
        self.exact_rows = EXACT_ROWS if exact else 1

    @classmethod
    def supports(cls, architecture: Architecture) -> str | None:
        """Refuse sizes that the attention kernel does not take, and activations where their operators have none."""
        for part in {layer.feed_forward for layer in architecture.layers}:
            if isinstance(part, Experts) and part.expert.activation == "gelu_tanh":
                return "has no experts with GELU"
            if isinstance(part, Mlp) and part.activation == "clipped_swiglu":
                return "has clipped_swiglu in experts only"
        rotated = [layer.attention.rope.dims for layer in architecture.layers if layer.attention.rope]
        for size in (architecture.heads.head_dim, *rotated):
            if size % HEAD_DIMS:
                return f"needs heads of a multiple of {HEAD_DIMS}, not {size}"
        return None

    def load(self, shard: Shard, weights: Path, kv_bytes: int = KV_BYTES) -> None:
        """Load as every engine does; with `bits` from rounded matrices, which are kept in the model cache."""
        if not self._bits:
            super().load(shard, weights, kv_bytes)
            return
        file = RoundedFile(weights, shard, self._bits)
        rounded = QuantizeOnLoad(open_weights(weights), shard, self._bits, file)
        self.read(shard, rounded)
        self.quantized_bits = self._bits if rounded.rounds else 0

    def build(self, shard: Shard, weights: Weights) -> OnnxShardModel:
        """Build the shard's graph and a session for it."""
        architecture = weights.architecture
        if any(isinstance(layer.feed_forward, Experts) for layer in architecture.layers):
            self.exact_rows, self.lone_passes = 1, self.invariant  # the rows of an expert are one product
        graph = model_graph(architecture, shard, weights, self._precision)
        embedding = None
        if shard.is_first:  # in the smallest form that loses nothing
            embedding = weights.blocks(EMBEDDING) or weights.tensor(EMBEDDING)
        return OnnxShardModel(architecture, shard, graph, embedding, self._padding(graph))

    def _padding(self, graph: Graph) -> Padding:
        """Return what keeps the bits of a row: in chunks or, if the engine is invariant, beside other slots."""
        if not self.invariant:
            return Padding()
        rows = [fewest_rows(bits) for bits in graph.attributes("MatMulNBits", "bits")] or [1]
        return Padding(spare_step=False, rows=max(rows), wanted=rows[-1])  # a quantized head is the last product

    def capabilities(self) -> EngineCapability:
        """Return onnxruntime's version, on the CPU, with the precision in `detail`."""
        return EngineCapability(name=self.name, version=onnxruntime.__version__, device="CPU", detail=self._precision)
