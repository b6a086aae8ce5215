"""Cutting an mlx-lm model into a pipeline stage: stubs replace the layers that other stages own.

The list of layers keeps its length, so masks, offsets and per-layer patterns stay as the family's author wrote them.
What is outside of the layers stays too: MLX computes only what an output depends on, so a stage that is not the last
never reads the head. No weights are read here.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from cluster.shard import Shard
from engines.activations import LARGEST_HALF
from engines.errors import EngineError
from models.architecture import Dtype


class CannotCut(ValueError):
    """The layers of a family pass on more than hidden states."""


class LayerHook:
    """Calls a layer, and lets subclasses act before or after it. Its other attributes are the layer's."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not arguments:  # GPT-J names its arguments; the rows come first
            arguments = (named.pop(next(iter(named))),)
        return self.run(*arguments, **named)

    def run(self, rows: mx.array, *others: Any, **named: Any) -> Any:
        """Call the layer with hidden states (batch, rows, hidden)."""
        return self._layer(rows, *others, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class LayerStub(LayerHook):
    """Replaces a layer of another stage. Returns its input, and advances its cache as the layer would."""

    def run(self, rows: mx.array, *others: Any, **named: Any) -> mx.array:
        for argument in (*others, *named.values()):
            advance(argument, rows.shape[0], rows.shape[1])
        return rows


class EmbeddingStub(LayerHook):
    """Replaces an embedding on stages without the first layer. Returns NaN.

    `InputHook` ignores it; a family that uses it in later layers as well is found by its first pass.
    """

    def run(self, rows: mx.array, *others: Any, **named: Any) -> mx.array:
        looked_up: mx.array = self._layer(rows)
        return looked_up * float("nan")


class RoundingHook(LayerHook):
    """Rounds the output of a layer to a dtype as `engines.activations.rounded` does, and keeps it in another."""

    def __init__(self, layer: Any, dtype: Dtype, kept: mx.Dtype) -> None:
        super().__init__(layer)
        self._dtype = dtype
        self._kept = kept

    def run(self, rows: mx.array, *others: Any, **named: Any) -> Any:
        output, more = _split(super().run(rows, *others, **named))
        if self._dtype == "float16":
            output = mx.clip(output, -LARGEST_HALF, LARGEST_HALF)
        return _joined(output.astype(getattr(mx, self._dtype)).astype(self._kept), more)


class InputHook(LayerHook):
    """The first owned layer. Its input is `received`, the hidden states of the previous stage."""

    received: Any = None

    def run(self, rows: mx.array, *others: Any, **named: Any) -> Any:
        return super().run(self.received, *others, **named)


class OutputHook(LayerHook):
    """The last owned layer. Keeps its output (all rows, hidden), not yet evaluated, for the stage to read.

    On the last stage only the rows in `wanted` continue to norm and head, as (1, wanted, hidden): both work by the row.
    In a whole model, which is `alone`, layers may pass on more than hidden states or have several streams of them, or a
    pass may go through them more than once. Then all rows continue. Elsewhere that raises CannotCut.
    """

    output: Any = None
    wanted: Any = None

    def __init__(self, layer: Any, alone: bool) -> None:
        super().__init__(layer)
        self._alone = alone
        self._looped = False  # known after the first pass, which has one row

    def run(self, rows: mx.array, *others: Any, **named: Any) -> Any:
        output, more = _split(super().run(rows, *others, **named))
        streams = output.ndim != 3
        if (more or streams) and not self._alone:
            raise CannotCut("its layers pass on more than hidden states")
        if self.output is not None:
            self._looped = True
            if not self._alone:
                raise CannotCut("a pass goes through its layers more than once")
        if streams:
            return _joined(output, more)
        self.output = output.reshape(-1, output.shape[-1])
        all_rows = self.wanted is None or self._looped
        return _joined(output if all_rows else self.output[None, self.wanted], more)


def cut(model: nn.Module, shard: Shard, dtype: Dtype, kept: mx.Dtype) -> tuple[InputHook, OutputHook]:
    """Leave a model the layers of a shard: stubs replace the others, and the outputs of its own are rounded to `dtype`.

    Returns the hooks of the first and the last of them. Call this after the weights are set, since the hooks hide
    their names. Raises EngineError if the layers cannot be found.
    """
    places = _places(model, shard)
    if not shard.is_first:
        _stub_embeddings(model)
    layers: list[Any] = [RoundingHook(list_of[at], dtype, kept) for list_of, at in places]
    first = InputHook(layers[shard.start_layer])
    if not shard.is_first:
        layers[shard.start_layer] = first
    last = OutputHook(layers[shard.end_layer - 1], shard.is_first and shard.is_last)
    layers[shard.end_layer - 1] = last
    for index, (list_of, at) in enumerate(places):
        list_of[at] = layers[index] if index in shard.layers else LayerStub(layers[index])
    return first, last


def _places(model: nn.Module, shard: Shard) -> list[tuple[list[Any], int]]:
    """Find where the model keeps each of its layers: a list, and the index in it."""
    order = {id(layer): index for index, layer in enumerate(model.layers)}
    found = {
        order[id(item)]: (value, at)
        for module in model.modules()
        for value in module.values()
        if isinstance(value, list)
        for at, item in enumerate(value)
        if id(item) in order
    }
    if not len(found) == len(order) == shard.n_layers:
        raise EngineError(f"{shard} does not fit this family's list of {len(order)} layers; choose another engine")
    return [found[index] for index in range(shard.n_layers)]


def _stub_embeddings(model: nn.Module) -> None:
    """Replace the embeddings outside of the layers."""
    inside = {id(module) for layer in model.layers for module in layer.modules()}
    for module in model.modules():
        if id(module) in inside:
            continue
        for name, value in list(module.items()):
            if isinstance(value, nn.Embedding | nn.QuantizedEmbedding):
                setattr(module, name, EmbeddingStub(value))


def advance(argument: Any, batch: int, rows: int) -> None:
    """Count rows in an argument of a layer if it is a cache with positions; in each cache if it has several."""
    for part in getattr(argument, "caches", ()):
        advance(part, batch, rows)
    if hasattr(argument, "update_and_fetch"):
        nothing = mx.zeros((batch, 1, rows, 1))
        argument.update_and_fetch(nothing, nothing)


def _split(output: Any) -> tuple[mx.array, tuple[Any, ...]]:
    """Separate a layer's hidden states from what else it returns."""
    return (output[0], tuple(output[1:])) if isinstance(output, tuple) else (output, ())


def _joined(output: mx.array, more: tuple[Any, ...]) -> Any:
    return (output, *more) if more else output
