"""One shard as an mlx-lm model in float32, with stubs for the layers of other stages. Knows no slots."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from cluster.shard import Shard
from engines.engine import NO_LOGITS, Chunk, EngineError, FloatArray, SavedKV
from engines.logits import split_logits, wanted_rows
from engines.mlx.batched_cache import batch_caches, patch_attention
from engines.mlx.pipeline import hook_ends, stub_foreign_layers
from models.architecture import Architecture
from models.sizes import shard_sizes
from models.weights.checkpoint import tensor_names
from models.weights.reader import Weights


class MlxShardModel:
    """mlx-lm's own classes for the model's family, with the shard's weights only.

    A ragged batch is one pass: its rows are a batch of sequences of one row each, and a `BatchedCache` sends each to
    its slot. If a family cannot use it, its chunks run one after another.
    """

    def __init__(self, architecture: Architecture, shard: Shard, weights: Weights) -> None:
        self.architecture = architecture
        self.shard = shard
        self.sizes = shard_sizes(architecture, shard)
        self._model = _model_without_weights(weights.settings)
        tied, hidden = architecture.tied_embedding, architecture.hidden_size
        stub_foreign_layers(self._model, shard, tied=tied, hidden_size=hidden)
        # Strict: a missing or an extra name is an error here, and not a wrong token later.
        named = [(name, mx.array(weights.tensor(name))) for name in tensor_names(architecture, shard)]
        self._model.load_weights(named, strict=True)
        mx.eval(self._model.parameters())
        self._input, self._output = hook_ends(self._model, shard, architecture.dtype)
        plain = importlib.import_module("mlx_lm.models.cache").KVCache
        self._has_plain_cache = all(type(entry) is plain for entry in self.new_cache())
        self._can_batch = self._has_plain_cache and self._accepts_batched_cache()

    def new_cache(self) -> list[Any]:
        """Make an empty cache for one slot: one entry for each layer of the model, stubs included."""
        return list(importlib.import_module("mlx_lm.models.cache").make_prompt_cache(self._model))

    def forward(self, batch: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[FloatArray]:
        """Compute each chunk's hidden states (rows, hidden), or on the last stage its logits (logits, vocab)."""
        if self._can_batch:
            return self._run(batch, caches)
        return [self._run([chunk], [cache])[0] for chunk, cache in zip(batch, caches, strict=True)]

    def truncate(self, cache: list[Any], position: int) -> None:
        """Trim the cache. Raises EngineError if the family's cache cannot be trimmed."""
        if not all(entry.is_trimmable() for entry in cache):
            raise EngineError("this model's cache cannot be set back; close the session and replay it")
        for entry in cache:
            entry.trim(entry.offset - position)

    def save(self, cache: list[Any], start: int, end: int) -> SavedKV:
        """Copy the owned layers' positions into pairs of numpy arrays (1, kv_heads, positions, head_dim).

        Raises EngineError if the family's cache is not a plain one.
        """
        if not self._has_plain_cache:
            raise EngineError("this model's cache cannot be copied; replay the session instead")
        owned = [cache[layer] for layer in self.shard.layers]
        content = [[np.array(part[..., start:end, :]) for part in (entry.keys, entry.values)] for entry in owned]
        return SavedKV(start, end, sum(part.nbytes for pair in content for part in pair), content)

    def restore(self, cache: list[Any], saved: SavedKV) -> None:
        """Append the copy; the caches of the stubs get as many zeros."""
        nothing = mx.zeros((1, 1, saved.end - saved.start, 1))
        copies = dict(zip(self.shard.layers, saved.content, strict=True))
        for layer, entry in enumerate(cache):
            entry.update_and_fetch(*map(mx.array, copies.get(layer, (nothing, nothing))))
        mx.eval([entry.state for entry in cache])

    def release(self, cache: list[Any]) -> None:
        """Do nothing: the arrays are freed with the cache."""

    def _run(self, chunks: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[FloatArray]:
        """Compute all rows of the chunks in one pass over the weights."""
        states, logits = self._graph(chunks, caches)
        no_output = self.shard.is_last and not any(chunk.logits for chunk in chunks)
        outputs = [] if no_output else [logits if self.shard.is_last else states]
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
        inputs = np.concatenate([chunk.inputs for chunk in chunks])
        shape = (len(inputs), 1) if len(chunks) > 1 else (1, len(inputs))
        if self.shard.is_first:
            tokens = mx.array(inputs.astype(np.int32)).reshape(shape)
        else:
            tokens = mx.zeros(shape, mx.int32)
            self._input.received = mx.array(inputs.astype(np.float32)).reshape(*shape, -1)
        if self.shard.is_last:
            # If no row is wanted, one stands in and is not computed: mlx-lm's code may not accept an empty array.
            self._output.wanted = mx.array(wanted_rows(chunks) if any(chunk.logits for chunk in chunks) else [0])
        logits = self._model(tokens, cache=batch_caches(chunks, caches) if len(chunks) > 1 else caches[0])
        states, self._output.output, self._input.received = self._output.output, None, None
        return states, logits[0]

    def _accepts_batched_cache(self) -> bool:
        """Build the graph of two chunks, without computing it, to see if the family's code takes a `BatchedCache`."""
        patch_attention()
        dtype, width = (np.int32, ()) if self.shard.is_first else (np.float32, (self.architecture.hidden_size,))
        chunks = [Chunk(slot, 0, np.zeros((rows, *width), dtype)) for slot, rows in enumerate((1, 2))]
        try:
            self._graph(chunks, [self.new_cache(), self.new_cache()])
        except (AttributeError, TypeError, ValueError, IndexError, NotImplementedError):
            return False
        return True


def _model_without_weights(settings: Mapping[str, Any]) -> Any:
    """Build the family's model with mlx-lm. Its random parameters are lazy, and are replaced before they are computed.

    Raises EngineError for an unknown family.
    """
    model_type = str(settings["model_type"])
    with open_file_limit_kept():
        remapped = importlib.import_module("mlx_lm.utils").MODEL_REMAPPING
    family = remapped.get(model_type, model_type)
    if not family.isidentifier():
        raise EngineError(f"{model_type!r} is not the name of a model family; check its config.json")
    try:
        classes = importlib.import_module(f"mlx_lm.models.{family}")
    except ModuleNotFoundError as error:
        raise EngineError(f"mlx-lm has no {family!r} family; update it or choose another model") from error
    return classes.Model(classes.ModelArgs.from_dict(dict(settings)))


@contextmanager
def open_file_limit_kept() -> Iterator[None]:
    """Undo what importing mlx_lm does to RLIMIT_NOFILE, as far as the system lets a process raise it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    lowered = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, lowered))
