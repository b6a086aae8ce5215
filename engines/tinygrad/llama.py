"""The Llama family in tinygrad, float32, as functions of their weights: one captured layer serves all layers."""

from __future__ import annotations

from tinygrad import Tensor, UOp

from cluster.shard import Shard
from models.config import ModelConfig
from models.weights import Weights, shard_names

LayerWeights = dict[str, Tensor]
"""One layer's tensors by checkpoint name without the layer's prefix, such as `self_attn.q_proj.weight`."""


class Llama:
    """The layers of one shard, with the embedding, final norm and head where the shard has them."""

    def __init__(self, config: ModelConfig, shard: Shard, weights: Weights) -> None:
        self.config = config
        self.shard = shard
        tensors = {name: Tensor(weights.tensor(name)).realize() for name in shard_names(config, shard)}
        self.layers = [_of_layer(tensors, layer) for layer in shard.layers]
        if "model.embed_tokens.weight" in tensors:
            self.embed_tokens = tensors["model.embed_tokens.weight"]
        if shard.is_last:
            self.norm = tensors["model.norm.weight"]
            self.lm_head = tensors["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]

    def embedded(self, tokens: Tensor) -> Tensor:
        """Token ids (rows,) -> hidden states (rows, hidden)."""
        return self.embed_tokens[tokens]

    def hidden(self, inputs: Tensor, position: UOp, turns: Tensor, caches: list[Tensor]) -> Tensor:
        """Token ids (rows,) or hidden states (rows, hidden) from `position` on -> hidden states, all in one."""
        rows = self.embedded(inputs) if self.shard.is_first else inputs
        for weights, cache in zip(self.layers, caches, strict=True):
            rows = self.layer(rows, position, turns, cache, weights)
        return rows

    def layer(self, rows: Tensor, position: UOp, turns: Tensor, cache: Tensor, weights: LayerWeights) -> Tensor:
        """One transformer block on hidden states (rows, hidden)."""
        normed = self._normed(rows, weights["input_layernorm.weight"])
        rows = (rows + self._attention(normed, position, turns, cache, weights)).contiguous()
        normed = self._normed(rows, weights["post_attention_layernorm.weight"])
        gated = linear(weights, "mlp.gate_proj", normed).silu() * linear(weights, "mlp.up_proj", normed)
        return (rows + linear(weights, "mlp.down_proj", gated.contiguous())).contiguous()

    def logits(self, rows: Tensor, row: UOp) -> Tensor:
        """Logits (1, vocab) of one row of the hidden states."""
        return self._normed(rows[row : row + 1], self.norm) @ self.lm_head.transpose()

    def _normed(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Zhang and Sennrich, "Root mean square layer normalization", 2019."""
        mean_square = rows.square().mean(-1, keepdim=True)
        return (rows * (mean_square + self.config.rms_norm_eps).rsqrt() * weight).contiguous()

    def _attention(self, rows: Tensor, position: UOp, turns: Tensor, cache: Tensor, weights: LayerWeights) -> Tensor:
        """Grouped-query attention over a cache (2, kv_heads, capacity, head_dim): keys, then values."""
        count, size, end = rows.shape[0], self.config.head_dim, position + rows.shape[0]
        queries, keys, values = (
            linear(weights, f"self_attn.{part}_proj", rows).reshape(count, -1, size).transpose(0, 1) for part in "qkv"
        )
        cache[:, :, position:end].assign(Tensor.stack(rotate(keys, turns), values)).realize()
        held = cache[:, :, :end].unsqueeze(2)
        # (kv_heads, heads that share them, rows, head_dim)
        grouped = rotate(queries, turns).reshape(self.config.n_kv_heads, -1, count, size)
        scores = (grouped * size**-0.5) @ held[0].transpose(-1, -2)
        if count > 1:
            scores = scores + Tensor.full((1, 1, count, end), float("-inf"), buffer=False).triu(position + 1)
        mixed = (scores.softmax(-1) @ held[1]).reshape(-1, count, size)
        return linear(weights, "self_attn.o_proj", mixed.transpose(0, 1).reshape(count, -1))


def linear(weights: LayerWeights, name: str, rows: Tensor) -> Tensor:
    """The product with a matrix (outputs, inputs), and its bias where there is one."""
    product = rows @ weights[f"{name}.weight"].transpose()
    bias = weights.get(f"{name}.bias")
    return product if bias is None else product + bias


def rotate(heads: Tensor, turns: Tensor) -> Tensor:
    """Turn (heads, rows, head_dim), half-split, by `turns` (2, rows, head_dim / 2): cosines, then sines."""
    first, second = heads.chunk(2, dim=-1)
    cosines, sines = turns[0], turns[1]
    return (first * cosines - second * sines).cat(second * cosines + first * sines, dim=-1)


def _of_layer(tensors: dict[str, Tensor], layer: int) -> LayerWeights:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): held for name, held in tensors.items() if name.startswith(prefix)}
