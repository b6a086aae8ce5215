"""The Llama family as an ONNX graph: the part of a model that one shard owns. Knows no runtime and no slots."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from cluster.shard import Shard
from engines.activations import LARGEST_HALF
from engines.onnx.graph import CONTRIBUTED, Graph
from engines.onnx.linear import linear
from engines.settings import Precision
from models.architecture import Architecture
from models.weights.reader import Weights

_ONNX_DTYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def llama_graph(architecture: Architecture, shard: Shard, weights: Weights, precision: Precision) -> Graph:
    """Build the graph from hidden states (embedded tokens on the first stage) to hidden states or, if last, logits.

    Inputs are float32 unless noted:

    - `hidden` (rows, hidden);
    - `pad_index` (batch, steps) int64, the row at each place of the padded batch, and `unpad_index` (rows, 2) int64,
      the place of each row, as in `BatchLayout`;
    - `seqlens_k` (batch,) int32, the last position of each sequence, and `total_sequence_length` (1,) int32, the
      length of the longest, as the operator GroupQueryAttention defines them;
    - `cos_cache` and `sin_cache` (positions, head_dim / 2);
    - `past_key_0` and `past_value_0` (batch, kv_heads, capacity, head_dim) for each layer of the shard, counted from 0,
      which must be bound to the same memory as the outputs `present_key_0` and `present_value_0`;
    - on the last stage `wanted` (wanted rows,) int64, the rows whose logits are wanted.

    The result is `output`, (rows, hidden) or (wanted rows, vocab).
    """
    return _Builder(architecture, shard, weights, precision).build()


class _Builder:
    """Adds layer after layer to a graph. The hidden states are rounded to the model's dtype after each."""

    def __init__(self, architecture: Architecture, shard: Shard, weights: Weights, precision: Precision) -> None:
        self._architecture, self._shard, self._weights, self._precision = architecture, shard, weights, precision
        self._graph = Graph()

    def build(self) -> Graph:
        self._declare_inputs()
        hidden = "hidden"
        for index, layer in enumerate(self._shard.layers):
            hidden = self._layer(hidden, f"model.layers.{layer}", index)
        if self._shard.is_last:
            self._head(hidden)
        else:
            self._graph.nodes("Identity", hidden, outputs=[self._graph.output("output", ("rows", "width"))])
        return self._graph

    def _layer(self, hidden: str, prefix: str, index: int) -> str:
        normed = self._norm(hidden, f"{prefix}.input_layernorm")
        attended = self._attention(normed, f"{prefix}.self_attn", index)
        normed, hidden = self._add_and_norm(hidden, attended, f"{prefix}.post_attention_layernorm")
        return self._rounded(self._graph.node("Add", hidden, self._mlp(normed, f"{prefix}.mlp")))

    def _rounded(self, rows: str) -> str:
        """Round as `engines.activations.rounded` does; the runtime's casts agree with it to the bit."""
        graph, dtype = self._graph, self._architecture.dtype
        if dtype == "float32":
            return rows
        if dtype == "float16":
            rows = graph.node("Clip", rows, graph.scalar(-LARGEST_HALF), graph.scalar(LARGEST_HALF))
        return graph.node("Cast", graph.node("Cast", rows, to=_ONNX_DTYPES[dtype]), to=TensorProto.FLOAT)

    def _declare_inputs(self) -> None:
        graph, half = self._graph, self._architecture.heads.head_dim // 2
        graph.input("hidden", np.float32, ("rows", self._architecture.hidden_size))
        graph.input("pad_index", np.int64, ("batch", "steps"))
        graph.input("unpad_index", np.int64, ("rows", 2))
        graph.input("seqlens_k", np.int32, ("batch",))
        graph.input("total_sequence_length", np.int32, (1,))
        graph.input("cos_cache", np.float32, ("positions", half))
        graph.input("sin_cache", np.float32, ("positions", half))

    def _linear(self, rows: str, *names: str) -> str:
        return linear(self._graph, rows, self._weights, self._precision, *names)

    def _norm(self, hidden: str, name: str) -> str:
        weight = self._graph.weight(self._weights.tensor(f"{name}.weight"))
        return self._graph.node("SimplifiedLayerNormalization", hidden, weight, epsilon=self._architecture.norm_eps)

    def _add_and_norm(self, hidden: str, added: str, name: str) -> tuple[str, str]:
        """Return the norm of the sum, and the sum itself."""
        graph, eps = self._graph, self._architecture.norm_eps
        weight = graph.weight(self._weights.tensor(f"{name}.weight"))
        outputs = (f"{name}.normed", "", "", f"{name}.sum")
        operator = "SkipSimplifiedLayerNormalization"
        graph.nodes(operator, hidden, added, weight, outputs=outputs, domain=CONTRIBUTED, epsilon=eps)
        return outputs[0], outputs[3]

    def _attention(self, rows: str, prefix: str, index: int) -> str:
        """Pad the rows for attention only; the products run on the rows without padding."""
        graph, heads = self._graph, self._architecture.heads
        qkv = self._linear(rows, *(f"{prefix}.{part}_proj" for part in "qkv"))
        padded = graph.node("Gather", qkv, "pad_index", axis=0)
        cache = ("batch", heads.kv_heads, "capacity", heads.head_dim)
        past = [graph.input(f"past_{part}_{index}", np.float32, cache) for part in ("key", "value")]
        present = [graph.output(f"present_{part}_{index}", cache) for part in ("key", "value")]
        inputs = (padded, "", "", *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache")
        mixed = f"{prefix}.mixed"
        graph.nodes(
            "GroupQueryAttention",
            *inputs,
            outputs=(mixed, *present),
            domain=CONTRIBUTED,
            num_heads=heads.heads,
            kv_num_heads=heads.kv_heads,
            scale=heads.head_dim**-0.5,
            do_rotary=1,
        )
        return self._linear(graph.node("GatherND", mixed, "unpad_index"), f"{prefix}.o_proj")

    def _mlp(self, rows: str, prefix: str) -> str:
        graph = self._graph
        both = self._linear(rows, f"{prefix}.gate_proj", f"{prefix}.up_proj")
        gate, up = graph.nodes("Split", both, outputs=(f"{prefix}.gate", f"{prefix}.up"), axis=1, num_outputs=2)
        silu = graph.node("QuickGelu", gate, domain=CONTRIBUTED, alpha=1.0)
        return self._linear(graph.node("Mul", silu, up), f"{prefix}.down_proj")

    def _head(self, hidden: str) -> None:
        graph = self._graph
        wanted = graph.input("wanted", np.int64, ("wanted",))
        normed = self._norm(graph.node("Gather", hidden, wanted, axis=0), "model.norm")
        name = "model.embed_tokens" if self._architecture.tied_embedding else "lm_head"
        graph.nodes("Identity", self._linear(normed, name), outputs=[graph.output("output", ("wanted", "vocabulary"))])
