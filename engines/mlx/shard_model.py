"""One shard as an mlx-lm model with ghost layers, float32. Knows nothing of slots."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from cluster.shard import Shard
from engines.engine import NO_LOGITS, Chunk, EngineError, FloatArray, SavedKV
from engines.logits import shared_out, wanted_rows
from engines.mlx.batched_cache import patch_attention, share
from engines.mlx.pipeline import stub_foreign_layers, wire
from models.config import ModelConfig
from models.weights import Weights, shard_names


class MlxShardModel:
    """mlx-lm's own classes for the model's family, holding the shard's weights only.

    A ragged batch is one pass: its rows are a batch of sequences of one row each, and a `BatchedCache` brings each
    to its own slot. Families that cannot have it run their chunks one after the other.
    """

    def __init__(self, config: ModelConfig, shard: Shard, weights: Weights) -> None:
        self.config = config
        self.shard = shard
        self._model = _bare_model(config)
        stub_foreign_layers(self._model, shard, tied=config.tie_word_embeddings, hidden_size=config.hidden_size)
        # Strict: a name that the shard lacks, or one too many, is an error here and not a wrong answer later.
        named = [(name, mx.array(weights.tensor(name))) for name in shard_names(config, shard)]
        self._model.load_weights(named, strict=True)
        mx.eval(self._model.parameters())
        self._entry, self._exit = wire(self._model, shard, config.dtype)
        plain = importlib.import_module("mlx_lm.models.cache").KVCache
        self._plain = all(type(entry) is plain for entry in self.cache())
        self._shares = self._plain and self._can_share()

    @property
    def position_bytes(self) -> int:
        """Keys and values in float32. Ghosts' caches, which hold one number a position, are not counted."""
        return 8 * len(self.shard.layers) * self.config.n_kv_heads * self.config.head_dim

    def cache(self) -> list[Any]:
        """An empty cache for one slot: one entry per layer of the model, ghosts included."""
        return list(importlib.import_module("mlx_lm.models.cache").make_prompt_cache(self._model))

    def forward(self, batch: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[FloatArray]:
        """Each chunk's hidden states (rows, hidden), or on the last stage its wanted logits (logits, vocab)."""
        if self._shares:
            return self._run(batch, caches)
        return [self._run([chunk], [cache])[0] for chunk, cache in zip(batch, caches, strict=True)]

    def truncate(self, cache: list[Any], position: int) -> None:
        """Trim the cache; EngineError where the family's cache cannot be trimmed."""
        if not all(entry.is_trimmable() for entry in cache):
            raise EngineError("this model's cache cannot be set back; close the session and replay it")
        for entry in cache:
            entry.trim(entry.offset - position)

    def save(self, cache: list[Any], start: int, end: int) -> SavedKV:
        """Copy the owned layers' positions into numpy arrays (1, kv_heads, positions, head_dim).

        EngineError where the family's cache is not a plain one.
        """
        if not self._plain:
            raise EngineError("this model's cache cannot be copied; replay the session instead")
        owned = [cache[layer] for layer in self.shard.layers]
        content = [[np.array(part[..., start:end, :]) for part in (entry.keys, entry.values)] for entry in owned]
        return SavedKV(start, end, sum(part.nbytes for pair in content for part in pair), content)

    def restore(self, cache: list[Any], saved: SavedKV) -> None:
        """Append the copy; the ghosts' caches are given as many zeros."""
        nothing = mx.zeros((1, 1, saved.end - saved.start, 1))
        copies = dict(zip(self.shard.layers, saved.content, strict=True))
        for layer, entry in enumerate(cache):
            entry.update_and_fetch(*map(mx.array, copies.get(layer, (nothing, nothing))))
        mx.eval([entry.state for entry in cache])

    def release(self, cache: list[Any]) -> None:
        """Nothing to do: the arrays go with their last holder."""

    def _run(self, chunks: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[FloatArray]:
        """One pass over the weights for all rows of the chunks."""
        states, logits = self._graph(chunks, caches)
        silent = self.shard.is_last and not any(chunk.logits for chunk in chunks)
        answer = [] if silent else [logits if self.shard.is_last else states]
        # The states too: a ghost's cache is read by nobody, and its graph would grow with each step.
        mx.eval(answer, [entry.state for cache in caches for entry in cache])
        if silent:
            return [NO_LOGITS] * len(chunks)
        array = np.array(answer[0], np.float32)
        return shared_out(array, chunks) if self.shard.is_last else _by_chunk(array, chunks)

    def _graph(self, chunks: Sequence[Chunk], caches: Sequence[list[Any]]) -> tuple[mx.array, mx.array]:
        """Hidden states (rows, hidden) and logits (wanted rows, vocab) of all chunks, neither computed yet."""
        inputs = np.concatenate([chunk.inputs for chunk in chunks])
        shape = (len(inputs), 1) if len(chunks) > 1 else (1, len(inputs))
        if self.shard.is_first:
            tokens = mx.array(inputs.astype(np.int32)).reshape(shape)
        else:
            tokens = mx.zeros(shape, mx.int32)
            self._entry.received = mx.array(inputs.astype(np.float32)).reshape(*shape, -1)
        if self.shard.is_last:
            # One row where none is wanted, which nobody computes: other people's code may not take an empty array.
            self._exit.wanted = mx.array(wanted_rows(chunks) if any(chunk.logits for chunk in chunks) else [0])
        logits = self._model(tokens, cache=share(chunks, caches) if len(chunks) > 1 else caches[0])
        states, self._exit.output, self._entry.received = self._exit.output, None, None
        return states, logits[0]

    def _can_share(self) -> bool:
        """Whether the family's code takes a `BatchedCache`: it is shown one, and nothing is computed."""
        patch_attention()
        dtype, width = (np.int32, ()) if self.shard.is_first else (np.float32, (self.config.hidden_size,))
        chunks = [Chunk(slot, 0, np.zeros((rows, *width), dtype)) for slot, rows in enumerate((1, 2))]
        try:
            self._graph(chunks, [self.cache(), self.cache()])
        except (AttributeError, TypeError, ValueError, IndexError, NotImplementedError):
            return False
        return True


def _by_chunk(states: FloatArray, chunks: Sequence[Chunk]) -> list[FloatArray]:
    return np.split(states, np.cumsum([chunk.rows for chunk in chunks])[:-1])


def _bare_model(config: ModelConfig) -> Any:
    """The family's model as mlx-lm builds it; its random parameters are not computed until somebody asks."""
    with open_file_limit_kept():
        remapped = importlib.import_module("mlx_lm.utils").MODEL_REMAPPING
    family = remapped.get(config.model_type, config.model_type)
    if not family.isidentifier():
        raise EngineError(f"{config.model_type!r} is no name of a model family; check its config.json")
    try:
        classes = importlib.import_module(f"mlx_lm.models.{family}")
    except ModuleNotFoundError as error:
        raise EngineError(f"mlx-lm has no {family!r} family; update it or choose another model") from error
    return classes.Model(classes.ModelArgs.from_dict(config.hf()))


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
