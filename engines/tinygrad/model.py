"""A model's description in tinygrad, float32. Knows no families.

Layers are functions of their weights, so one captured layer serves all of its kind.
"""

from __future__ import annotations

from tinygrad import Tensor, UOp, dtypes

from cluster.shard import Shard
from engines.activations import LARGEST_HALF
from engines.tinygrad.feed_forward import feed_forward
from engines.tinygrad.linear import LayerWeights, floats, hold, linear
from models.architecture import Architecture, Attention, Dtype
from models.weights.checkpoint import EMBEDDING, FINAL_NORM, HEAD, tensor_names
from models.weights.reader import Weights

SMALLEST_NORMAL_HALF, SUBNORMAL_HALF_STEP = 2.0**-14, 2.0**-24
"""The smallest normal number of float16, and the distance between the numbers below it."""


class TinygradModel:
    """The layers of one shard, with the embedding, final norm and head if the shard has them."""

    def __init__(self, architecture: Architecture, shard: Shard, weights: Weights) -> None:
        self.architecture = architecture
        self.shard = shard
        specs = [architecture.layers[index] for index in shard.layers]
        self.ropes = list(dict.fromkeys(spec.attention.rope for spec in specs if spec.attention.rope))
        tensors = {name: hold(weights.tensor(name)) for name in tensor_names(architecture, shard)}
        self.layers: list[LayerWeights] = []
        for layer in shard.layers:
            prefix = f"model.layers.{layer}."
            own = {name.removeprefix(prefix): held for name, held in tensors.items() if name.startswith(prefix)}
            self.layers.append(own)
        kinds = [(spec, *(held.dtype for held in own.values())) for spec, own in zip(specs, self.layers, strict=True)]
        self.kinds = list(dict.fromkeys(kinds))
        self.kind_of = [self.kinds.index(kind) for kind in kinds]
        """For each layer its place in `kinds`: a captured layer serves all with its description and dtypes."""
        if EMBEDDING in tensors:
            self.embed_tokens = tensors[EMBEDDING]
        if shard.is_last:
            self.norm = tensors[FINAL_NORM]
            self.lm_head = tensors[EMBEDDING if architecture.tied_embedding else HEAD]

    def embedded(self, tokens: Tensor) -> Tensor:
        """Embed token ids (rows,) as hidden states (rows, hidden)."""
        return times(floats(self.embed_tokens[tokens]), self.architecture.embedding_scale)

    def hidden(self, inputs: Tensor, ropes: list[Tensor], caches: list[Tensor], position: UOp) -> Tensor:
        """Run token ids (rows,) or hidden states (rows, hidden) from `position` on through all layers in one graph.

        `ropes` (2, rows, dims / 2), one for each of `self.ropes`, hold the cosines, then the sines, of each row.
        """
        rows = self.embedded(inputs) if self.shard.is_first else inputs
        for kind, weights, cache in zip(self.kind_of, self.layers, caches, strict=True):
            rows = self.layer(rows, ropes, weights, [cache], kind, position)
        return rows

    def layer(
        self, rows: Tensor, ropes: list[Tensor], weights: LayerWeights, caches: list[Tensor], kind: int, *positions: UOp
    ) -> Tensor:
        """Run one transformer block of a kind on hidden states (rows, hidden).

        Each sequence has the same number of rows, a cache, and the position at which its rows begin.
        """
        (spec, *_), scale = self.kinds[kind], self.architecture.residual_scale
        normed = self._normed(rows, weights["input_layernorm.weight"])
        added = self._attention(normed, spec.attention, ropes, weights, caches, positions)
        if spec.post_norms:
            added = self._normed(added, weights["post_attention_layernorm.weight"])
        rows = (rows + times(added, scale)).contiguous()
        before = "pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm"
        added = feed_forward(self._normed(rows, weights[f"{before}.weight"]), spec.feed_forward, weights)
        if spec.post_norms:
            added = self._normed(added, weights["post_feedforward_layernorm.weight"])
        return rounded(rows + times(added, scale), self.architecture.dtype).contiguous()

    def logits(self, rows: Tensor, first: UOp, count: int) -> Tensor:
        """Compute the logits (count, vocab) of consecutive rows of the hidden states."""
        logits = self._normed(rows[first : first + count], self.norm) @ floats(self.lm_head).transpose()
        return capped(times(logits, self.architecture.logit_scale), self.architecture.logit_softcap)

    def _normed(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Apply RMSNorm (Zhang and Sennrich, "Root mean square layer normalization", 2019)."""
        mean_square = rows.square().mean(-1, keepdim=True)
        weight = weight + self.architecture.norm_offset if self.architecture.norm_offset else weight
        return (rows * (mean_square + self.architecture.norm_eps).rsqrt() * weight).contiguous()

    def _attention(
        self,
        rows: Tensor,
        spec: Attention,
        ropes: list[Tensor],
        weights: LayerWeights,
        caches: list[Tensor],
        positions: tuple[UOp, ...],
    ) -> Tensor:
        """Apply grouped-query attention, with each sequence's rows over its own cache."""
        count = rows.shape[0]
        queries, keys, values = (
            linear(weights, f"self_attn.{part}_proj", rows).reshape(count, -1, spec.head_dim).transpose(0, 1)
            for part in "qkv"
        )
        if spec.qk_norm:
            queries = self._normed(queries, weights["self_attn.q_norm.weight"])
            keys = self._normed(keys, weights["self_attn.k_norm.weight"])
        if spec.rope is not None:
            rope = ropes[self.ropes.index(spec.rope)]
            queries, keys = rotate(queries, rope, spec.rope.dims), rotate(keys, rope, spec.rope.dims)
        fresh = Tensor.stack(keys, values)
        if len(positions) > 1:  # or each sequence's kernels would compute them again
            queries, fresh = queries.contiguous(), fresh.contiguous()
        each = count // len(positions)
        parts = zip(queries.split(each, 1), fresh.split(each, 2), caches, positions, strict=True)
        sinks = weights.get("self_attn.sinks")
        mixed = Tensor.cat(*(attend(spec, sinks, *part) for part in parts), dim=1)
        return linear(weights, "self_attn.o_proj", mixed.transpose(0, 1).reshape(count, -1))


def attend(
    spec: Attention, sinks: Tensor | None, queries: Tensor, fresh: Tensor, cache: Tensor, position: UOp
) -> Tensor:
    """Write `fresh` to a cache (2, kv_heads, capacity, head_dim); attend from (heads, rows, head_dim) over it.

    `sinks` (heads,) are logits that take a part of the softmax and get no place.
    """
    heads, count, size = queries.shape
    end = position + count
    store(cache, fresh, position)
    held = cache[:, :, :end].unsqueeze(2)
    # (kv_heads, heads that share one, rows, head_dim)
    grouped = queries.reshape(spec.kv_heads, -1, count, size)
    scores = capped((grouped * spec.scale) @ held[0].transpose(-1, -2), spec.softcap)
    nothing = Tensor.full((1, 1, count, end), float("-inf"), buffer=False)
    if count > 1:
        scores = scores + nothing.triu(position + 1)
    if spec.window is not None:
        scores = scores + nothing.tril(position - spec.window)
    shares = scores.softmax(-1) if sinks is None else softmax_with_sinks(scores, sinks.reshape(spec.kv_heads, -1, 1, 1))
    return (shares @ held[1]).reshape(heads, count, size)


def softmax_with_sinks(scores: Tensor, sinks: Tensor) -> Tensor:
    """Apply the softmax over the last axis and one more logit, `sinks` (..., 1), which gets no place."""
    largest = scores.max(-1, keepdim=True).maximum(sinks)
    parts = (scores - largest).exp()
    return parts / (parts.sum(-1, keepdim=True) + (sinks - largest).exp())


def times(rows: Tensor, factor: float) -> Tensor:
    """Multiply, unless the factor is 1."""
    return rows if factor == 1 else rows * factor


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Bound logits to -cap..cap, if there is a cap."""
    return logits if cap is None else (logits / cap).tanh() * cap


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


def rotate(heads: Tensor, rope: Tensor, dims: int) -> Tensor:
    """Rotate the first `dims` of (heads, rows, head_dim), half-split, by `rope` (2, rows, dims / 2)."""
    first, second, rest = heads[..., : dims // 2], heads[..., dims // 2 : dims], heads[..., dims:]
    cosines, sines = rope[0], rope[1]
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return Tensor.cat(*rotated, *((rest,) if dims < heads.shape[-1] else ()), dim=-1)
