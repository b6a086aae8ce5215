"""Cutting an mlx-lm model into a stage: ghosts in place of what other stages own. No weights are read here.

The full layer list stays, so masks, offsets and per-layer patterns stay as the family's author wrote them.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from cluster.shard import Shard
from models.config import Dtype

LARGEST_HALF = 65504.0


class LayerStub(nn.Module):  # type: ignore[misc]  # mlx carries no types that mypy follows
    """Stands for a layer of another stage: passes its input on, and moves its cache's offset all the same."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Plain attributes such as `use_sliding` steer the model's loop.
        for name, value in vars(layer).items():
            if not name.startswith("_"):
                setattr(self, name, value)

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        nothing = mx.zeros((rows.shape[0], 1, rows.shape[1], 1), rows.dtype)
        cache.update_and_fetch(nothing, nothing)
        return rows


class EmbeddingStub(nn.Module):  # type: ignore[misc]
    """Stands for the embedding where a stage has none: zeros (batch, rows, hidden) that `Entry` replaces."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.zeros((*tokens.shape, self.hidden_size), mx.float32)

    def as_linear(self, rows: mx.array) -> mx.array:
        """The tied head of a stage that is not the last: nobody reads its answer."""
        return rows


class Passthrough(nn.Module):  # type: ignore[misc]
    """Stands for the final norm or the head of a stage that is not the last."""

    def __call__(self, rows: mx.array) -> mx.array:
        return rows


class Wrapped:
    """An owned layer with something done before or after it. Its other attributes are the layer's own."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        output: mx.array = self._layer(rows, mask, cache=cache)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class Rounded(Wrapped):
    """An owned layer of a model of 16 bits: what it answers is rounded to those, and stays float32."""

    def __init__(self, layer: Any, dtype: Dtype) -> None:
        super().__init__(layer)
        self._dtype = dtype

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Ties to even; what float16 cannot hold becomes its largest number."""
        output = super().__call__(rows, mask, cache)
        if self._dtype == "float16":
            output = mx.clip(output, -LARGEST_HALF, LARGEST_HALF)
        rounded: mx.array = output.astype(getattr(mx, self._dtype)).astype(mx.float32)
        return rounded


class Entry(Wrapped):
    """The first owned layer: works on the hidden states of the stage before instead of on its input."""

    received: Any = None

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        return super().__call__(self.received, mask, cache)


class Exit(Wrapped):
    """The last owned layer: keeps its output (all rows, hidden), unevaluated, for the stage to take.

    Where rows are `wanted`, on the last stage, only they go on, as (1, wanted, hidden): norm and head work by the row.
    """

    output: Any = None
    wanted: Any = None

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        output = super().__call__(rows, mask, cache)
        self.output = output.reshape(-1, output.shape[-1])
        return output if self.wanted is None else self.output[None, self.wanted]


def stub_foreign_layers(model: nn.Module, shard: Shard, *, tied: bool, hidden_size: int) -> None:
    """Put ghosts where other stages own the weights, so that the model's parameters are the shard's alone."""
    for layer in range(shard.n_layers):
        if layer not in shard.layers:
            model.layers[layer] = LayerStub(model.layers[layer])
    if not (shard.is_first or (shard.is_last and tied)):
        model.model.embed_tokens = EmbeddingStub(hidden_size)
    if not shard.is_last:
        model.model.norm = Passthrough()
        if not tied:
            model.lm_head = Passthrough()


def wire(model: nn.Module, shard: Shard, dtype: Dtype) -> tuple[Entry, Exit]:
    """Round what the owned layers answer and open their two ends.

    To be called once the weights are in: it hides their names.
    """
    layers = model.layers
    if dtype != "float32":
        for index in shard.layers:
            layers[index] = Rounded(layers[index], dtype)
    entry = Entry(layers[shard.start_layer])
    if not shard.is_first:
        layers[shard.start_layer] = entry
    end = Exit(layers[shard.end_layer - 1])
    layers[shard.end_layer - 1] = end
    return entry, end
