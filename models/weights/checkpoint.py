"""The tensors of a Llama checkpoint under their Hugging Face names: which a shard needs, and their shapes.

Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.shard import Shard
from models.config import ModelConfig
from models.errors import WeightsError

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def tensor_names(config: ModelConfig, shard: Shard) -> tuple[str, ...]:
    """List the checkpoint names that `shard` needs, and no others, in the order of the model."""
    names = [EMBEDDING] if shard.is_first or (shard.is_last and config.tie_word_embeddings) else []
    layer_names = _layer_shapes(config)
    names += [f"model.layers.{layer}.{name}" for layer in shard.layers for name in layer_names]
    if shard.is_last:
        names.append(FINAL_NORM)
        names += [] if config.tie_word_embeddings else [HEAD]
    return tuple(names)


def tensor_shape(config: ModelConfig, name: str) -> tuple[int, ...] | None:
    """Return the shape of a checkpoint tensor, or None for a name that the model does not use."""
    if name in (EMBEDDING, HEAD):
        return config.vocab_size, config.hidden_size
    if name == FINAL_NORM:
        return (config.hidden_size,)
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    known = name.startswith("model.layers.") and layer.isdigit() and int(layer) < config.n_layers
    return _layer_shapes(config).get(rest) if known else None


def check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise WeightsError if a tensor's shape contradicts the configuration. Unknown names pass."""
    for name, shape in shapes.items():
        expected = tensor_shape(config, name)
        if expected is not None and shape != expected:
            raise WeightsError(
                f"{path} holds {name} as {list(shape)}, but its configuration says {list(expected)}: "
                "it is damaged, delete it and fetch the model again"
            )


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Map the names within one layer to shapes, in the order of a checkpoint."""
    hidden, query = config.hidden_size, config.n_heads * config.head_dim
    key, inner = config.n_kv_heads * config.head_dim, config.intermediate_size
    attention = {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
    }
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    shapes |= {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
    shapes |= {f"mlp.{name}.weight": shape for name, shape in mlp.items()}
    if config.attention_bias:
        shapes |= {f"self_attn.{name}.bias": shape[:1] for name, shape in attention.items()}
    if config.mlp_bias:
        shapes |= {f"mlp.{name}.bias": shape[:1] for name, shape in mlp.items()}
    return shapes
