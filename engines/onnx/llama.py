"""The Llama family as an ONNX graph: the part of a model that one shard owns. No runtime here, no slots."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from cluster.shard import Shard
from engines.activations import LARGEST_HALF
from engines.onnx.graph import CONTRIBUTED, Graph
from engines.onnx.linear import linear
from engines.precision import Precision
from models.config import ModelConfig
from models.weights import Weights

_STORED = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def llama_graph(config: ModelConfig, shard: Shard, weights: Weights, precision: Precision) -> Graph:
    """From hidden states (embedded tokens on the first stage) to hidden states, or logits on the last stage.

    Inputs: `hidden` (rows, hidden); `grid` (lanes, steps) says which row stands where, `order` (rows, 2) in which lane
    and step each row stands; `ends` (lanes,) is the last position of each lane and `longest` (1,) how many
    positions the longest has; `cosines` and `sines` (capacity, head_dim / 2); on the last stage `wanted` lists the
    rows whose logits are wanted. Per layer of the shard, counted from 0, `keys_0` and `values_0`
    (lanes, kv_heads, capacity, head_dim), to be bound to the same memory as the outputs `new_keys_0`, `new_values_0`.
    """
    return _Builder(config, shard, weights, precision).build()


class _Builder:
    """The residual stream is one value from layer to layer, rounded to the model's dtype after each."""

    def __init__(self, config: ModelConfig, shard: Shard, weights: Weights, precision: Precision) -> None:
        self._config, self._shard, self._weights, self._precision = config, shard, weights, precision
        self._graph = Graph()

    def build(self) -> Graph:
        self._declare()
        stream = "hidden"
        for index, layer in enumerate(self._shard.layers):
            stream = self._layer(stream, f"model.layers.{layer}", index)
        if self._shard.is_last:
            self._head(stream)
        else:
            self._graph.nodes("Identity", stream, outputs=[self._graph.output("answer", ("rows", "width"))])
        return self._graph

    def _layer(self, stream: str, prefix: str, index: int) -> str:
        normed = self._norm(stream, f"{prefix}.input_layernorm")
        change = self._attention(normed, f"{prefix}.self_attn", index)
        normed, stream = self._added_norm(stream, change, f"{prefix}.post_attention_layernorm")
        return self._rounded(self._graph.node("Add", stream, self._mlp(normed, f"{prefix}.mlp")))

    def _rounded(self, rows: str) -> str:
        """As `engines.activations.rounded`, which the runtime's casts agree with to the bit."""
        graph, dtype = self._graph, self._config.dtype
        if dtype == "float32":
            return rows
        if dtype == "float16":
            rows = graph.node("Clip", rows, graph.scalar(-LARGEST_HALF), graph.scalar(LARGEST_HALF))
        return graph.node("Cast", graph.node("Cast", rows, to=_STORED[dtype]), to=TensorProto.FLOAT)

    def _declare(self) -> None:
        graph, half = self._graph, self._config.head_dim // 2
        graph.input("hidden", np.float32, ("rows", self._config.hidden_size))
        graph.input("grid", np.int64, ("lanes", "steps"))
        graph.input("order", np.int64, ("rows", 2))
        graph.input("ends", np.int32, ("lanes",))
        graph.input("longest", np.int32, (1,))
        graph.input("cosines", np.float32, ("capacity", half))
        graph.input("sines", np.float32, ("capacity", half))

    def _linear(self, rows: str, *names: str) -> str:
        return linear(self._graph, rows, self._weights, self._precision, *names)

    def _norm(self, stream: str, name: str) -> str:
        weight = self._graph.weight(self._weights.tensor(f"{name}.weight"))
        return self._graph.node("SimplifiedLayerNormalization", stream, weight, epsilon=self._config.rms_norm_eps)

    def _added_norm(self, stream: str, change: str, name: str) -> tuple[str, str]:
        """The norm of stream + change, and the sum itself."""
        graph, eps = self._graph, self._config.rms_norm_eps
        weight = graph.weight(self._weights.tensor(f"{name}.weight"))
        outputs = (f"{name}.normed", "", "", f"{name}.sum")
        operator = "SkipSimplifiedLayerNormalization"
        graph.nodes(operator, stream, change, weight, outputs=outputs, domain=CONTRIBUTED, epsilon=eps)
        return outputs[0], outputs[3]

    def _attention(self, rows: str, prefix: str, index: int) -> str:
        """The rows are laid into the lanes' grid for attention alone; all products see them close together."""
        graph, config = self._graph, self._config
        qkv = self._linear(rows, *(f"{prefix}.{part}_proj" for part in "qkv"))
        placed = graph.node("Gather", qkv, "grid", axis=0)
        cache = ("lanes", config.n_kv_heads, "capacity", config.head_dim)
        past = [graph.input(f"{part}_{index}", np.float32, cache) for part in ("keys", "values")]
        present = [graph.output(f"new_{name}", cache) for name in past]
        inputs = (placed, "", "", *past, "ends", "longest", "cosines", "sines")
        mixed = f"{prefix}.mixed"
        graph.nodes(
            "GroupQueryAttention",
            *inputs,
            outputs=(mixed, *present),
            domain=CONTRIBUTED,
            num_heads=config.n_heads,
            kv_num_heads=config.n_kv_heads,
            scale=config.head_dim**-0.5,
            do_rotary=1,
        )
        return self._linear(graph.node("GatherND", mixed, "order"), f"{prefix}.o_proj")

    def _mlp(self, rows: str, prefix: str) -> str:
        graph = self._graph
        both = self._linear(rows, f"{prefix}.gate_proj", f"{prefix}.up_proj")
        gate, up = graph.nodes("Split", both, outputs=(f"{prefix}.gate", f"{prefix}.up"), axis=1, num_outputs=2)
        silu = graph.node("QuickGelu", gate, domain=CONTRIBUTED, alpha=1.0)
        return self._linear(graph.node("Mul", silu, up), f"{prefix}.down_proj")

    def _head(self, stream: str) -> None:
        graph = self._graph
        wanted = graph.input("wanted", np.int64, ("wanted",))
        normed = self._norm(graph.node("Gather", stream, wanted, axis=0), "model.norm")
        name = "model.embed_tokens" if self._config.tie_word_embeddings else "lm_head"
        graph.nodes("Identity", self._linear(normed, name), outputs=[graph.output("answer", ("wanted", "vocabulary"))])
