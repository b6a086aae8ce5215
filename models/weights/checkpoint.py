"""The tensors of a model under their canonical names: which a shard needs, and their shapes. Reads no file.

The names are those of a Llama's Hugging Face checkpoint, with more for more parts. All experts of a layer are one
tensor, and no two modules are. How a file stores them is in `models.weights.layout`.
"""

from __future__ import annotations

from cluster.shard import Shard
from models.architecture import Architecture, Experts, Layer, Mlp

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

Shape = tuple[int, ...]


def tensor_names(architecture: Architecture, shard: Shard) -> tuple[str, ...]:
    """List the names that `shard` needs, and no others, in the order of the model."""
    return tuple(tensor_shapes(architecture, shard))


def tensor_shapes(architecture: Architecture, shard: Shard) -> dict[str, Shape]:
    """Map the names that `shard` needs to shapes, in the order of the model."""
    hidden, tied = architecture.hidden_size, architecture.tied_embedding
    table = (architecture.vocab_size, hidden)
    shapes: dict[str, Shape] = {EMBEDDING: table} if shard.is_first or (shard.is_last and tied) else {}
    for index in shard.layers:
        own = layer_shapes(architecture.layers[index], hidden)
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in own.items()}
    if shard.is_last:
        shapes |= {FINAL_NORM: (hidden,)} | ({} if tied else {HEAD: table})
    return shapes


def layer_shapes(layer: Layer, hidden: int) -> dict[str, Shape]:
    """Map the names within a layer to shapes. Matrices are (outputs, inputs), those of experts (experts, ...)."""
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if layer.post_norms else []
    shapes: dict[str, Shape] = {f"{name}.weight": (hidden,) for name in norms}
    shapes |= _attention_shapes(layer, hidden)
    match layer.feed_forward:
        case Mlp() as mlp:
            shapes |= _mlp_shapes("mlp", mlp, hidden)
        case Experts(count=count) as experts:
            shapes |= _linear_shapes("mlp.gate", (count, hidden), experts.router_bias)
            each = _mlp_shapes("mlp.experts", experts.expert, hidden)
            shapes |= {name: (count, *shape) for name, shape in each.items()}
    return shapes


def _attention_shapes(layer: Layer, hidden: int) -> dict[str, Shape]:
    attention = layer.attention
    query, key = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    shapes: dict[str, Shape] = {}
    for part, rows in (("q", query), ("k", key), ("v", key)):
        shapes |= _linear_shapes(f"self_attn.{part}_proj", (rows, hidden), attention.qkv_bias)
    shapes |= _linear_shapes("self_attn.o_proj", (hidden, query), attention.out_bias)
    if attention.qk_norm:
        shapes |= {f"self_attn.{part}_norm.weight": (attention.head_dim,) for part in "qk"}
    return shapes | ({"self_attn.sinks": (attention.heads,)} if attention.sinks else {})


def _mlp_shapes(prefix: str, mlp: Mlp, hidden: int) -> dict[str, Shape]:
    inner, outer = (mlp.inner, hidden), (hidden, mlp.inner)
    shapes: dict[str, Shape] = {}
    for name, shape in (("gate_proj", inner), ("up_proj", inner), ("down_proj", outer)):
        shapes |= _linear_shapes(f"{prefix}.{name}", shape, mlp.bias)
    return shapes


def _linear_shapes(module: str, shape: Shape, bias: bool) -> dict[str, Shape]:
    return {f"{module}.weight": shape} | ({f"{module}.bias": shape[:1]} if bias else {})
