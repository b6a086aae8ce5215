"""A model's description as an ONNX graph: the part that one shard owns. Knows no runtime, no slots and no families."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from cluster.shard import Shard
from engines.activations import LARGEST_HALF
from engines.onnx.graph import CONTRIBUTED, Graph
from engines.onnx.linear import linear
from engines.settings import Precision
from models.architecture import SWIGLU_ALPHA, SWIGLU_LIMIT, Architecture, Attention, Experts, Mlp, Rope
from models.weights.reader import Weights

_ONNX_DTYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def model_graph(architecture: Architecture, shard: Shard, weights: Weights, precision: Precision) -> Graph:
    """Build the graph from hidden states (embedded tokens on the first stage) to hidden states or, if last, logits.

    Inputs are float32 unless noted:

    - `hidden` (rows, hidden);
    - `pad_index` (batch, steps) int64, the row at each place of the padded batch, and `unpad_index` (rows, 2) int64,
      the place of each row, as in `BatchLayout`;
    - `seqlens_k` (batch,) int32, the last position of each sequence, and `total_sequence_length` (1,) int32, the
      length of the longest, as the operator GroupQueryAttention defines them;
    - `cos_cache_0` and `sin_cache_0` (positions, dims / 2) for each of `ropes_of` the shard, counted from 0;
    - `past_key_0` and `past_value_0` (batch, kv_heads, capacity, head_dim) for each layer of the shard, counted from 0,
      which must be bound to the same memory as the outputs `present_key_0` and `present_value_0`;
    - on the last stage `wanted` (wanted rows,) int64, the rows of which logits are wanted.

    The result is `output`, (rows, hidden) or (wanted rows, vocab).
    """
    return _Builder(architecture, shard, weights, precision).build()


class _Builder:
    """Adds layer after layer to a graph. The hidden states are rounded to the model's dtype after each."""

    def __init__(self, architecture: Architecture, shard: Shard, weights: Weights, precision: Precision) -> None:
        self._architecture, self._shard, self._weights, self._precision = architecture, shard, weights, precision
        self._graph, self._ropes = Graph(), ropes_of(architecture, shard)

    def build(self) -> Graph:
        self._declare_inputs()
        hidden = "hidden"
        for index, layer in enumerate(self._shard.layers):
            hidden = self._layer(hidden, layer, index)
        if self._shard.is_last:
            self._head(hidden)
        else:
            self._graph.nodes("Identity", hidden, outputs=[self._graph.output("output", ("rows", "width"))])
        return self._graph

    def _layer(self, hidden: str, layer: int, index: int) -> str:
        """Add layer `layer` of the model, which is number `index` of the shard."""
        spec, prefix = self._architecture.layers[layer], f"model.layers.{layer}"
        normed = self._norm(hidden, f"{prefix}.input_layernorm")
        added = self._attention(normed, spec.attention, f"{prefix}.self_attn", index)
        before = "post_attention_layernorm"
        if spec.post_norms:
            added, before = self._norm(added, f"{prefix}.{before}"), "pre_feedforward_layernorm"
        normed, hidden = self._add_and_norm(hidden, self._residual(added), f"{prefix}.{before}")
        added = self._feed_forward(normed, spec.feed_forward, f"{prefix}.mlp")
        if spec.post_norms:
            added = self._norm(added, f"{prefix}.post_feedforward_layernorm")
        return self._rounded(self._graph.node("Add", hidden, self._residual(added)))

    def _residual(self, added: str) -> str:
        """Scale what a part of a layer adds."""
        return self._times(added, self._architecture.residual_scale)

    def _times(self, rows: str, factor: float) -> str:
        return rows if factor == 1 else self._graph.node("Mul", rows, self._graph.scalar(factor))

    def _rounded(self, rows: str) -> str:
        """Round as `engines.activations.rounded` does; the runtime's casts agree with it to the bit."""
        graph, dtype = self._graph, self._architecture.dtype
        if dtype == "float32":
            return rows
        if dtype == "float16":
            rows = graph.node("Clip", rows, graph.scalar(-LARGEST_HALF), graph.scalar(LARGEST_HALF))
        return graph.node("Cast", graph.node("Cast", rows, to=_ONNX_DTYPES[dtype]), to=TensorProto.FLOAT)

    def _declare_inputs(self) -> None:
        graph = self._graph
        graph.input("hidden", np.float32, ("rows", self._architecture.hidden_size))
        graph.input("pad_index", np.int64, ("batch", "steps"))
        graph.input("unpad_index", np.int64, ("rows", 2))
        graph.input("seqlens_k", np.int32, ("batch",))
        graph.input("total_sequence_length", np.int32, (1,))
        for index, rope in enumerate(self._ropes):
            graph.input(f"cos_cache_{index}", np.float32, ("positions", rope.dims // 2))
            graph.input(f"sin_cache_{index}", np.float32, ("positions", rope.dims // 2))

    def _linear(self, rows: str, *names: str) -> str:
        return linear(self._graph, rows, self._weights, self._precision, *names)

    def _norm(self, hidden: str, name: str) -> str:
        weight, eps = self._norm_weight(name), self._architecture.norm_eps
        return self._graph.node("SimplifiedLayerNormalization", hidden, weight, epsilon=eps)

    def _norm_weight(self, name: str) -> str:
        offset = np.float32(self._architecture.norm_offset)
        return self._graph.weight(self._weights.tensor(f"{name}.weight") + offset)

    def _add_and_norm(self, hidden: str, added: str, name: str) -> tuple[str, str]:
        """Return the norm of the sum, and the sum itself."""
        graph, eps = self._graph, self._architecture.norm_eps
        weight = self._norm_weight(name)
        outputs = (f"{name}.normed", "", "", f"{name}.sum")
        operator = "SkipSimplifiedLayerNormalization"
        graph.nodes(operator, hidden, added, weight, outputs=outputs, domain=CONTRIBUTED, epsilon=eps)
        return outputs[0], outputs[3]

    def _attention(self, rows: str, spec: Attention, prefix: str, index: int) -> str:
        """Pad the rows for attention only; the products run on the rows without padding."""
        graph = self._graph
        qkv = self._linear(rows, *(f"{prefix}.{part}_proj" for part in "qkv"))
        if spec.qk_norm:
            qkv = self._heads_normed(qkv, spec, prefix)
        padded = graph.node("Gather", qkv, "pad_index", axis=0)
        cache = ("batch", spec.kv_heads, "capacity", spec.head_dim)
        past = [graph.input(f"past_{part}_{index}", np.float32, cache) for part in ("key", "value")]
        present = [graph.output(f"present_{part}_{index}", cache) for part in ("key", "value")]
        rope = "" if spec.rope is None else str(self._ropes.index(spec.rope))
        tables = [f"{part}_cache_{rope}" if rope else "" for part in ("cos", "sin")]
        sinks = ("", "", graph.weight(self._weights.tensor(f"{prefix}.sinks"))) if spec.sinks else ()
        inputs = (padded, "", "", *past, "seqlens_k", "total_sequence_length", *tables, *sinks)
        mixed = f"{prefix}.mixed"
        graph.nodes(
            "GroupQueryAttention",
            *inputs,
            outputs=(mixed, *present),
            domain=CONTRIBUTED,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            scale=spec.scale,
            do_rotary=int(spec.rope is not None),
            local_window_size=spec.window or -1,
            softcap=spec.softcap or 0.0,
        )
        return self._linear(graph.node("GatherND", mixed, "unpad_index"), f"{prefix}.o_proj")

    def _heads_normed(self, qkv: str, spec: Attention, prefix: str) -> str:
        """Norm each head of queries and keys, which the operator does on other devices only."""
        graph = self._graph
        query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        outputs = [f"{prefix}.{part}" for part in "qkv"]
        parts = list(graph.nodes("Split", qkv, graph.constant(query, key, key), outputs=outputs, axis=1))
        for index, (name, width) in enumerate((("q_norm", query), ("k_norm", key))):
            heads = graph.node("Reshape", parts[index], graph.constant(-1, spec.head_dim))
            parts[index] = graph.node("Reshape", self._norm(heads, f"{prefix}.{name}"), graph.constant(-1, width))
        return graph.node("Concat", *parts, axis=1)

    def _feed_forward(self, rows: str, spec: Mlp | Experts, prefix: str) -> str:
        if isinstance(spec, Experts):
            return self._experts(rows, spec, prefix)
        graph = self._graph
        both = self._linear(rows, f"{prefix}.gate_proj", f"{prefix}.up_proj")
        gate, up = graph.nodes("Split", both, outputs=(f"{prefix}.gate", f"{prefix}.up"), axis=1, num_outputs=2)
        if spec.activation == "silu":
            active = graph.node("QuickGelu", gate, domain=CONTRIBUTED, alpha=1.0)
        else:
            active = graph.node("FastGelu", gate, domain=CONTRIBUTED)
        return self._linear(graph.node("Mul", active, up), f"{prefix}.down_proj")

    def _experts(self, rows: str, spec: Experts, prefix: str) -> str:
        """Add a router, and experts in float32; in their matrices the rows of gate and up alternate."""
        graph, clipped = self._graph, spec.expert.activation == "clipped_swiglu"
        inputs = []
        for kind in ("weight", "bias") if spec.expert.bias else ("weight",):
            names = (f"{prefix}.experts.{part}_proj.{kind}" for part in ("gate", "up", "down"))
            gate, up, down = (self._weights.tensor(name) for name in names)
            both = np.stack((gate, up), axis=2).reshape(spec.count, -1, *gate.shape[2:])
            inputs.append((graph.weight(both), graph.weight(down)))
        first, second = zip(*inputs, strict=True)
        return graph.node(
            "MoE",
            rows,
            self._linear(rows, f"{prefix}.gate"),
            *(*first, "")[:2],
            *second,
            domain=CONTRIBUTED,
            k=spec.top_k,
            activation_type="swiglu",
            swiglu_fusion=1,
            normalize_routing_weights=int(spec.norm_top_k),
            activation_alpha=SWIGLU_ALPHA if clipped else 1.0,
            activation_beta=1.0 if clipped else 0.0,
            **({"swiglu_limit": SWIGLU_LIMIT} if clipped else {}),
        )

    def _head(self, hidden: str) -> None:
        graph, architecture = self._graph, self._architecture
        wanted = graph.input("wanted", np.int64, ("wanted",))
        normed = self._norm(graph.node("Gather", hidden, wanted, axis=0), "model.norm")
        name = "model.embed_tokens" if architecture.tied_embedding else "lm_head"
        logits = self._times(self._linear(normed, name), architecture.logit_scale)
        if (cap := architecture.logit_softcap) is not None:
            logits = self._times(graph.node("Tanh", self._times(logits, 1 / cap)), cap)
        graph.nodes("Identity", logits, outputs=[graph.output("output", ("wanted", "vocabulary"))])


def ropes_of(architecture: Architecture, shard: Shard) -> list[Rope]:
    """List the different ropes of a shard's layers, in the order in which they come."""
    ropes = (architecture.layers[index].attention.rope for index in shard.layers)
    return list(dict.fromkeys(rope for rope in ropes if rope is not None))
