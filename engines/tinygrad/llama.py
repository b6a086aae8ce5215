"""The Llama family in tinygrad, float32. Layers are functions of their weights, so one captured layer serves all."""

from __future__ import annotations

from tinygrad import Tensor, UOp, dtypes

from cluster.shard import Shard
from engines.activations import LARGEST_HALF
from models.architecture import Architecture, Dtype
from models.weights.checkpoint import tensor_names
from models.weights.reader import Weights

SMALLEST_NORMAL_HALF, SUBNORMAL_HALF_STEP = 2.0**-14, 2.0**-24
"""The smallest normal number of float16, and the distance between the numbers below it."""

LayerWeights = dict[str, Tensor]
"""One layer's tensors by checkpoint name without the layer's prefix, such as `self_attn.q_proj.weight`."""


class TinygradLlama:
    """The layers of one shard, with the embedding, final norm and head if the shard has them."""

    def __init__(self, architecture: Architecture, shard: Shard, weights: Weights) -> None:
        self.architecture = architecture
        self.shard = shard
        tensors = {name: Tensor(weights.tensor(name)).realize() for name in tensor_names(architecture, shard)}
        self.layers: list[LayerWeights] = []
        for layer in shard.layers:
            prefix = f"model.layers.{layer}."
            own = {name.removeprefix(prefix): held for name, held in tensors.items() if name.startswith(prefix)}
            self.layers.append(own)
        if "model.embed_tokens.weight" in tensors:
            self.embed_tokens = tensors["model.embed_tokens.weight"]
        if shard.is_last:
            self.norm = tensors["model.norm.weight"]
            self.lm_head = tensors["model.embed_tokens.weight" if architecture.tied_embedding else "lm_head.weight"]

    def embedded(self, tokens: Tensor) -> Tensor:
        """Embed token ids (rows,) as hidden states (rows, hidden)."""
        return self.embed_tokens[tokens]

    def hidden(self, inputs: Tensor, rope: Tensor, caches: list[Tensor], position: UOp) -> Tensor:
        """Run token ids (rows,) or hidden states (rows, hidden) from `position` on through all layers in one graph.

        `rope` (2, rows, head_dim / 2) holds the cosines, then the sines, of each row's rotation.
        """
        rows = self.embedded(inputs) if self.shard.is_first else inputs
        for weights, cache in zip(self.layers, caches, strict=True):
            rows = self.layer(rows, rope, weights, [cache], position)
        return rows

    def layer(self, rows: Tensor, rope: Tensor, weights: LayerWeights, caches: list[Tensor], *positions: UOp) -> Tensor:
        """Run one transformer block on hidden states (rows, hidden).

        Each sequence has the same number of rows, a cache, and the position at which its rows begin.
        """
        normed = self._normed(rows, weights["input_layernorm.weight"])
        rows = (rows + self._attention(normed, rope, weights, caches, positions)).contiguous()
        normed = self._normed(rows, weights["post_attention_layernorm.weight"])
        gated = linear(weights, "mlp.gate_proj", normed).silu() * linear(weights, "mlp.up_proj", normed)
        return rounded(
            rows + linear(weights, "mlp.down_proj", gated.contiguous()), self.architecture.dtype
        ).contiguous()

    def logits(self, rows: Tensor, first: UOp, count: int) -> Tensor:
        """Compute the logits (count, vocab) of consecutive rows of the hidden states."""
        return self._normed(rows[first : first + count], self.norm) @ self.lm_head.transpose()

    def _normed(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Apply RMSNorm (Zhang and Sennrich, "Root mean square layer normalization", 2019)."""
        mean_square = rows.square().mean(-1, keepdim=True)
        return (rows * (mean_square + self.architecture.norm_eps).rsqrt() * weight).contiguous()

    def _attention(
        self, rows: Tensor, rope: Tensor, weights: LayerWeights, caches: list[Tensor], positions: tuple[UOp, ...]
    ) -> Tensor:
        """Apply grouped-query attention, with each sequence's rows over its own cache."""
        count, size = rows.shape[0], self.architecture.heads.head_dim
        queries, keys, values = (
            linear(weights, f"self_attn.{part}_proj", rows).reshape(count, -1, size).transpose(0, 1) for part in "qkv"
        )
        queries, fresh = rotate(queries, rope), Tensor.stack(rotate(keys, rope), values)
        if len(positions) > 1:  # or each sequence's kernels would compute them again
            queries, fresh = queries.contiguous(), fresh.contiguous()
        each = count // len(positions)
        parts = zip(queries.split(each, 1), fresh.split(each, 2), caches, positions, strict=True)
        mixed = Tensor.cat(*(self._attend(*part) for part in parts), dim=1)
        return linear(weights, "self_attn.o_proj", mixed.transpose(0, 1).reshape(count, -1))

    def _attend(self, queries: Tensor, fresh: Tensor, cache: Tensor, position: UOp) -> Tensor:
        """Write `fresh` to a cache (2, kv_heads, capacity, head_dim); attend from (heads, rows, head_dim) over it."""
        heads, count, size = queries.shape
        end = position + count
        store(cache, fresh, position)
        held = cache[:, :, :end].unsqueeze(2)
        # (kv_heads, heads that share one, rows, head_dim)
        grouped = queries.reshape(self.architecture.heads.kv_heads, -1, count, size)
        scores = (grouped * size**-0.5) @ held[0].transpose(-1, -2)
        if count > 1:
            scores = scores + Tensor.full((1, 1, count, end), float("-inf"), buffer=False).triu(position + 1)
        return (scores.softmax(-1) @ held[1]).reshape(heads, count, size)


def store(cache: Tensor, fresh: Tensor, position: UOp) -> None:
    """Write keys and values (2, kv_heads, rows, head_dim) into a cache from `position` on."""
    cache[:, :, position : position + fresh.shape[2]].assign(fresh).realize()


def copied(cache: Tensor, position: UOp, rows: int) -> Tensor:
    """Copy the keys and values (2, kv_heads, rows, head_dim) of a cache from `position` on."""
    return cache[:, :, position : position + rows].contiguous()


def rounded(rows: Tensor, dtype: Dtype) -> Tensor:
    """Round as `engines.activations.rounded` does, but by bits, since the effect of a cast depends on the device."""
    if dtype == "float16":
        clipped = rows.clip(-LARGEST_HALF, LARGEST_HALF)
        subnormal = (clipped / SUBNORMAL_HALF_STEP).round() * SUBNORMAL_HALF_STEP
        return (clipped.abs() < SMALLEST_NORMAL_HALF).where(subnormal, _without_low_bits(clipped, 13))
    return _without_low_bits(rows, 16) if dtype == "bfloat16" else rows


def _without_low_bits(rows: Tensor, count: int) -> Tensor:
    """Round float32 numbers to a mantissa with `count` bits less, ties to even."""
    bits = rows.bitcast(dtypes.uint32)
    half_less_one, mask = (1 << count - 1) - 1, (1 << 32) - (1 << count)
    return ((bits + half_less_one + ((bits >> count) & 1)) & mask).bitcast(dtypes.float32)


def linear(weights: LayerWeights, name: str, rows: Tensor) -> Tensor:
    """Multiply with the transpose of a matrix (outputs, inputs), and add its bias if it has one."""
    product = rows @ weights[f"{name}.weight"].transpose()
    bias = weights.get(f"{name}.bias")
    return product if bias is None else product + bias


def rotate(heads: Tensor, rope: Tensor) -> Tensor:
    """Rotate (heads, rows, head_dim), half-split, by `rope` (2, rows, head_dim / 2): cosines, then sines."""
    first, second = heads.chunk(2, dim=-1)
    cosines, sines = rope[0], rope[1]
    return (first * cosines - second * sines).cat(second * cosines + first * sines, dim=-1)
