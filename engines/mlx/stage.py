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
from engines.engine import NO_LOGITS, Chunk, EngineError, FloatArray
from engines.mlx.ghost import haunt, wire
from models.config import ModelConfig
from models.weights import Weights, shard_names


class MlxStage:
    """mlx-lm's own classes for the model's family, holding the shard's weights only."""

    def __init__(self, config: ModelConfig, shard: Shard, weights: Weights) -> None:
        self.config = config
        self.shard = shard
        self._model = _bare_model(config)
        haunt(self._model, shard, tied=config.tie_word_embeddings, hidden_size=config.hidden_size)
        # Strict: a name that the shard lacks, or one too many, is an error here and not a wrong answer later.
        named = [(name, mx.array(weights.tensor(name))) for name in shard_names(config, shard)]
        self._model.load_weights(named, strict=True)
        mx.eval(self._model.parameters())
        self._entry, self._exit = wire(self._model, shard)

    def cache(self) -> list[Any]:
        """An empty cache for one slot: one entry per layer of the model, ghosts included."""
        return list(importlib.import_module("mlx_lm.models.cache").make_prompt_cache(self._model))

    def forward(self, batch: Sequence[Chunk], caches: Sequence[list[Any]]) -> list[FloatArray]:
        """Each chunk's hidden states (rows, hidden), or on the last stage its logits (vocab,)."""
        return [self._one(chunk, cache) for chunk, cache in zip(batch, caches, strict=True)]

    def truncate(self, cache: list[Any], position: int) -> None:
        """Trim the cache; EngineError where the family's cache cannot be trimmed."""
        if not all(entry.is_trimmable() for entry in cache):
            raise EngineError("this model's cache cannot be set back; close the session and replay it")
        for entry in cache:
            entry.trim(entry.offset - position)

    def _one(self, chunk: Chunk, cache: list[Any]) -> FloatArray:
        answer = self._answer(chunk, cache)
        # The states too: a ghost's cache is read by nobody, and its graph would grow with each step.
        mx.eval([] if answer is None else answer, [entry.state for entry in cache])
        return NO_LOGITS if answer is None else np.array(answer, np.float32)

    def _answer(self, chunk: Chunk, cache: list[Any]) -> mx.array | None:
        if self.shard.is_first:
            tokens = mx.array(chunk.inputs.astype(np.int32))[None]
        else:
            tokens = mx.zeros((1, chunk.rows), mx.int32)
            self._entry.received = mx.array(chunk.inputs.astype(np.float32))[None]
        logits = self._model(tokens, cache=cache)
        output, self._exit.output, self._entry.received = self._exit.output, None, None
        if not self.shard.is_last:
            return mx.squeeze(output, 0)
        return logits[0, -1] if chunk.wants_logits else None


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
