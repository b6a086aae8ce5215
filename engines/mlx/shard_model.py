"""One shard as an mlx-lm model, with stubs for the layers of other stages. Knows no slots."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from cluster.shard import Shard
from engines.engine import NO_LOGITS, Chunk, FloatArray, SavedKV
from engines.errors import EngineError, NotInParts
from engines.logits import split_logits, wanted_rows
from engines.mlx.batched_cache import batch_caches, patch_attention
from engines.mlx.family_model import FAMILY_ERRORS, load_family_model
from engines.mlx.pipeline import CannotCut, cut
from models.sizes import ShardSizes
from models.weights.reader import Weights, sizes_of

STATE_POSITIONS = 1024
"""The state of a recurrent layer is counted as memory of this many positions, though it does not grow with them."""


class MlxShardModel:
    """mlx-lm's own classes for the model's family, with the shard's weights only.

    With `upcast` all is computed in float32, else in the dtype of the stored weights. Quantized weights stay packed.

    A ragged batch is one pass: its rows are a batch of sequences of one row each, and a `BatchedCache` sends each to
    its slot. If a family cannot use it, its chunks run one after another.
    """

    def __init__(self, shard: Shard, weights: Weights, *, upcast: bool) -> None:
        self.shard = shard
        self._whole, self._window = sizes_of(weights), _window(weights)
        self._computed = mx.float32 if upcast else getattr(mx, self._whole.dtype)
        self._model = load_family_model(weights, shard, upcast=upcast)
        layers = list(self._model.layers)
        self._input, self._output = cut(self._model, shard, self._whole.dtype, self._computed)
        probe = self._probe()  # before the weights are read, since it may show that the family cannot be cut
        try:
            for index in shard.layers:
                for _, parameter in tree_flatten(layers[index].parameters()):
                    mx.eval(parameter)  # one after another: a stack of experts takes its memory twice until it is made
            self._check_numbers(probe)
        except RuntimeError as error:
            raise EngineError(
                f"MLX cannot compute this model here ({error}); choose another engine or model"
            ) from error
        cache = self.new_cache()
        plain = importlib.import_module("mlx_lm.models.cache").KVCache
        self.saves = len(cache) == shard.n_layers and all(type(entry) is plain for entry in cache)
        self.sizes = self._shard_sizes()
        self._can_batch = self.saves and self._accepts_batched_cache()

    def new_cache(self) -> list[Any]:
        """Make an empty cache for one slot: one entry for each layer of the model, stubs included."""
        return list(importlib.import_module("mlx_lm.models.cache").make_prompt_cache(self._model))

    def forward(self, batch: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[FloatArray]:
        """Compute each chunk's hidden states (rows, hidden), or on the last stage its logits (logits, vocab)."""
        if self._can_batch:
            return self._run(batch, caches)
        return [self._run([chunk], [cache])[0] for chunk, cache in zip(batch, caches, strict=True)]

    def truncate(self, cache: list[Any], position: int) -> None:
        """Trim the cache. Raises EngineError if the family's cache is not a plain one."""
        if not self.saves:
            raise EngineError("this model's cache cannot be set back; close the session and replay it")
        for entry in cache:
            entry.trim(entry.offset - position)

    def save(self, cache: list[Any], start: int, end: int) -> SavedKV:
        """Copy the owned layers' positions, as pairs of the bits of arrays (1, kv_heads, positions, head_dim).

        Raises EngineError if the family's cache is not a plain one.
        """
        if not self.saves:
            raise EngineError("this model's cache cannot be copied; replay the session instead")
        owned = [cache[layer] for layer in self.shard.layers]
        content = [[_bits(part[..., start:end, :]) for part in (entry.keys, entry.values)] for entry in owned]
        return SavedKV(start, end, sum(part.nbytes for pair in content for part in pair), content)

    def restore(self, cache: list[Any], saved: SavedKV) -> None:
        """Append the copy; the caches of the stubs get as many zeros."""
        nothing = mx.zeros((1, 1, saved.end - saved.start, 1))
        copies = dict(zip(self.shard.layers, saved.content, strict=True))
        for layer, entry in enumerate(cache):
            if layer in copies:
                entry.update_and_fetch(*(mx.array(part).view(self._kv_dtype) for part in copies[layer]))
            else:
                entry.update_and_fetch(nothing, nothing)
        mx.eval([entry.state for entry in cache])

    def release(self, cache: list[Any]) -> None:
        """Do nothing: the arrays are freed with the cache."""

    def _run(self, chunks: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[FloatArray]:
        """Compute all rows of the chunks in one pass over the weights."""
        states, logits = self._graph(chunks, caches)
        no_output = self.shard.is_last and not any(chunk.logits for chunk in chunks)
        outputs = [] if no_output else [(logits if self.shard.is_last else states).astype(mx.float32)]
        # The caches too: no output depends on a stub's cache, so its graph would grow with each step.
        mx.eval(outputs, [entry.state for cache in caches for entry in cache])
        if no_output:
            return [NO_LOGITS] * len(chunks)
        array = np.array(outputs[0], np.float32)
        if self.shard.is_last:
            return split_logits(array, chunks)
        return np.split(array, np.cumsum([chunk.rows for chunk in chunks])[:-1])

    def _graph(self, chunks: Sequence[Chunk], caches: Sequence[list[Any]]) -> tuple[mx.array, mx.array]:
        """Build hidden states (rows, hidden) and logits (wanted rows, vocab) of all chunks, without computing them."""
        self._output.output = None  # of a pass that failed
        inputs = np.concatenate([chunk.inputs for chunk in chunks])
        shape = (len(inputs), 1) if len(chunks) > 1 else (1, len(inputs))
        if self.shard.is_first:
            tokens = mx.array(inputs.astype(np.int32)).reshape(shape)
        else:
            tokens = mx.zeros(shape, mx.int32)
            received = mx.array(inputs.astype(np.float32)).astype(self._computed)
            self._input.received = received.reshape(*shape, -1)
        if self.shard.is_last:
            # If no row is wanted, one stands in and is not computed: mlx-lm's code may not accept an empty array.
            self._output.wanted = mx.array(wanted_rows(chunks) if any(chunk.logits for chunk in chunks) else [0])
        logits = self._model(tokens, cache=batch_caches(chunks, caches) if len(chunks) > 1 else caches[0])
        states, self._output.output, self._input.received = self._output.output, None, None
        if states is None and not (self.shard.is_first and self.shard.is_last):
            raise CannotCut("its layers are not called as a whole")
        logits, wanted = logits[0], self._output.wanted
        if wanted is not None and len(wanted) != len(logits):  # the hook could not select them
            logits = logits[wanted]
        return states, logits

    def _probe(self) -> tuple[list[mx.array], list[Any]]:
        """Build the graph of a pass of one row and one of two, without computing them. Returns outputs and cache.

        Raises EngineError if the family's code does not work, NotInParts if it does not work with stubs.
        """
        cache, outputs = self.new_cache(), []
        try:
            for position, rows in ((0, 1), (1, 2)):
                states, logits = self._graph([self._blank_chunk(0, position, rows)], [cache])
                outputs.append(logits if self.shard.is_last else states)
        except FAMILY_ERRORS as error:
            family = f"mlx-lm's {self._whole.model_type!r} family"
            remedy = "update mlx-lm or choose another engine"
            if self.shard.is_first and self.shard.is_last:
                raise EngineError(f"{family} does not compute here ({error}); {remedy}") from error
            raise NotInParts(f"{family} cannot be split ({error}); run it on one node") from error
        return outputs, cache

    def _check_numbers(self, probe: tuple[list[mx.array], list[Any]]) -> None:
        """Compute the first pass, which reads what is needed outside of the layers, and measure its cache.

        Raises EngineError for NaN: it is in place of all that the shard lacks.
        """
        outputs, cache = probe
        mx.eval(outputs, [entry.state for entry in cache])
        if not all(bool(mx.isfinite(output).all()) for output in outputs):
            raise EngineError(
                f"a pass through {self.shard} gives no numbers: its weights are damaged or incomplete, or its layers"
                " use more than the output of the layer before; fetch the model again, or run it on one node"
            )
        self._position_bytes, self._kv_dtype = _measured(cache)

    def _shard_sizes(self) -> ShardSizes:
        """Return the sizes. If mlx-lm's family leaves windows out, a context ends where they would begin to matter."""
        whole = self._whole
        context = min(whole.context_length, self._window) if self.saves else whole.context_length
        return ShardSizes(whole.hidden_size, whole.vocab_size, context, whole.dtype, self._position_bytes)

    def _blank_chunk(self, slot: int, position: int, rows: int) -> Chunk:
        if self.shard.is_first:
            return Chunk(slot, position, np.zeros(rows, np.int32), 1)
        return Chunk(slot, position, np.ones((rows, self._whole.hidden_size), np.float32), int(self.shard.is_last))

    def _accepts_batched_cache(self) -> bool:
        """Build the graph of two chunks, without computing it, to see if the family's code takes a `BatchedCache`."""
        patch_attention()
        chunks = [self._blank_chunk(slot, 0, rows) for slot, rows in enumerate((1, 2))]
        try:
            self._graph(chunks, [self.new_cache(), self.new_cache()])
        except FAMILY_ERRORS:
            return False
        return True


def _window(weights: Weights) -> int:
    """Return the shortest window of the layers, if exobus knows of one; else the context."""
    known = weights.repository.model.known if weights.repository else weights.architecture
    windows = [layer.attention.window for layer in known.layers if layer.attention.window] if known else []
    return min(windows, default=sizes_of(weights).context_length)


def _measured(cache: list[Any]) -> tuple[int, mx.Dtype]:
    """Return the bytes that a position takes in a cache, and the dtype of keys.

    The arrays of a stub's cache are one number wide, and count as nothing.
    """
    per_position, state, dtype = 0, 0, mx.float32
    for entry in _parts(cache):
        if getattr(entry, "keys", None) is None:
            state += entry.nbytes
            continue
        for part in (entry.keys, entry.values):
            width = part.shape[1] * part.shape[3]
            if width > 1:
                per_position, dtype = per_position + width * part.dtype.size, part.dtype
    return max(1, per_position + state // STATE_POSITIONS), dtype


def _parts(cache: Sequence[Any]) -> list[Any]:
    """List the caches in a cache, without those that only hold others."""
    return [part for entry in cache for part in (_parts(entry.caches) if hasattr(entry, "caches") else [entry])]


def _bits(array: mx.array) -> np.ndarray:
    """Copy an array to numpy as unsigned integers, since numpy has no bfloat16."""
    return np.array(array.view(mx.uint16 if array.dtype.size == 2 else mx.uint32))
