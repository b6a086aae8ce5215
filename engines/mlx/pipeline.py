"""Cutting an mlx-lm model into a pipeline stage: stubs replace the modules that other stages own.

The list of layers keeps its length, so masks, offsets and per-layer patterns stay as the family's author wrote them.
No weights are read here.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from cluster.shard import Shard
from engines.activations import LARGEST_HALF
from models.architecture import Dtype


class LayerStub(nn.Module):  # type: ignore[misc]  # mlx has no types that mypy can follow
    """Replaces a layer of another stage. Returns its input, and advances its cache as the layer would."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # The model's loop reads plain attributes such as `use_sliding`.
        for name, value in vars(layer).items():
            if not name.startswith("_"):
                setattr(self, name, value)

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        nothing = mx.zeros((rows.shape[0], 1, rows.shape[1], 1), rows.dtype)
        cache.update_and_fetch(nothing, nothing)
        return rows


class EmbeddingStub(nn.Module):  # type: ignore[misc]
    """Replaces the embedding on stages without one. Returns zeros (batch, rows, hidden), which `InputHook` ignores."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def __call__(self, tokens: mx.array) -> mx.array:
        return mx.zeros((*tokens.shape, self.hidden_size), mx.float32)

    def as_linear(self, rows: mx.array) -> mx.array:
        """Stand in for the tied head on a stage that is not the last; the result is not used."""
        return rows


class LayerHook:
    """Calls an owned layer, and lets subclasses act before or after it. Its other attributes are the layer's."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        output: mx.array = self._layer(rows, mask, cache=cache)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class RoundingHook(LayerHook):
    """Rounds the output of a layer to a 16-bit dtype as `engines.activations.rounded` does. It stays float32."""

    def __init__(self, layer: Any, dtype: Dtype) -> None:
        super().__init__(layer)
        self._dtype = dtype

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        output = super().__call__(rows, mask, cache)
        if self._dtype == "float16":
            output = mx.clip(output, -LARGEST_HALF, LARGEST_HALF)
        rounded: mx.array = output.astype(getattr(mx, self._dtype)).astype(mx.float32)
        return rounded


class InputHook(LayerHook):
    """The first owned layer. Its input is `received`, the hidden states of the previous stage."""

    received: Any = None

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        return super().__call__(self.received, mask, cache)


class OutputHook(LayerHook):
    """The last owned layer. Keeps its output (all rows, hidden), not yet evaluated, for the stage to read.

    On the last stage only the rows in `wanted` continue to norm and head, as (1, wanted, hidden): both work by the row.
    """

    output: Any = None
    wanted: Any = None

    def __call__(self, rows: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        output = super().__call__(rows, mask, cache)
        self.output = output.reshape(-1, output.shape[-1])
        return output if self.wanted is None else self.output[None, self.wanted]


def stub_foreign_layers(model: nn.Module, shard: Shard, *, tied: bool, hidden_size: int) -> None:
    """Replace the modules that other stages own with stubs, so that the model has only this shard's parameters."""
    for layer in range(shard.n_layers):
        if layer not in shard.layers:
            model.layers[layer] = LayerStub(model.layers[layer])
    if not (shard.is_first or (shard.is_last and tied)):
        model.model.embed_tokens = EmbeddingStub(hidden_size)
    if not shard.is_last:
        model.model.norm = nn.Identity()
        if not tied:
            model.lm_head = nn.Identity()


def hook_ends(model: nn.Module, shard: Shard, dtype: Dtype) -> tuple[InputHook, OutputHook]:
    """Round the outputs of the owned layers, and hook the first and the last of them.

    Call this after the weights are loaded, since the hooks hide their names.
    """
    layers = model.layers
    if dtype != "float32":
        for index in shard.layers:
            layers[index] = RoundingHook(layers[index], dtype)
    first = InputHook(layers[shard.start_layer])
    if not shard.is_first:
        layers[shard.start_layer] = first
    last = OutputHook(layers[shard.end_layer - 1])
    layers[shard.end_layer - 1] = last
    return first, last
