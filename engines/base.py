"""What the engines share: one shard's model, its slots, and the order of checking, computing and counting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

from cluster.shard import Shard
from engines.engine import Chunk, EngineError, FloatArray, InferenceEngine, SavedKV
from engines.slot_table import SlotTable
from models.config import Dtype, ModelConfig, position_bytes
from models.weights.reader import Weights

CacheT = TypeVar("CacheT")


class ShardModel(Protocol[CacheT]):
    """The arithmetic of one shard. It keeps no slots: each call brings the caches of its chunks."""

    @property
    def config(self) -> ModelConfig:
        """The sizes of the whole model."""
        ...

    @property
    def shard(self) -> Shard:
        """The layers that this model has."""
        ...

    def new_cache(self) -> CacheT:
        """Make an empty cache for one slot."""
        ...

    def forward(self, batch: Sequence[Chunk], caches: Sequence[CacheT]) -> list[FloatArray]:
        """Compute as `InferenceEngine.forward` does, with a cache for each chunk. The chunks are already checked."""
        ...

    def truncate(self, cache: CacheT, position: int) -> None:
        """Keep the first `position` positions of a cache."""
        ...

    def save(self, cache: CacheT, start: int, end: int) -> SavedKV:
        """Copy positions that the cache holds."""
        ...

    def restore(self, cache: CacheT, saved: SavedKV) -> None:
        """Append a copy to a cache that holds exactly `saved.start` positions."""
        ...

    def release(self, cache: CacheT) -> None:
        """Free what a cache takes. It is not used again."""
        ...


class SlotEngine(InferenceEngine, Generic[CacheT]):
    """An engine made of a `ShardModel` and a `SlotTable`. A subclass defines how to build the model.

    With `reads_folders` it runs models that exobus does not describe, by classes of its own.
    """

    reads_folders: ClassVar[bool] = False

    def __init__(self) -> None:
        self._loaded: tuple[ShardModel[CacheT], SlotTable[CacheT]] | None = None

    @abstractmethod
    def build(self, shard: Shard, weights: Weights) -> ShardModel[CacheT]:
        """Read the shard's tensors. Raises EngineError for a family that the engine does not support."""

    def read(self, shard: Shard, weights: Weights) -> None:
        """Build the model, once. Raises EngineError for a second call, or a shard of another number of layers."""
        if self._loaded is not None:
            raise EngineError(f"this engine already holds {self._loaded[0].shard}; start another for {shard}")
        if shard.n_layers != weights.config.n_layers:
            raise EngineError(
                f"{shard} is cut for {shard.n_layers} layers but the weights have {weights.config.n_layers};"
                " fetch the model that the shard names"
            )
        if weights.config.undescribed and not self.reads_folders:
            raise EngineError(f"{self.name} has no {weights.config.undescribed}; choose the engine mlx")
        model = self.build(shard, weights)
        self._loaded = model, SlotTable(shard, model.config, model.new_cache)

    @property
    def activations(self) -> Dtype:
        """The model's own dtype."""
        return self._model_and_slots()[0].config.dtype

    @property
    def position_bytes(self) -> int:
        """The bytes of float32 keys and values that one position takes in all layers of the shard."""
        model, _ = self._model_and_slots()
        return position_bytes(model.shard, model.config.n_kv_heads, model.config.head_dim)

    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]:
        """Check the whole batch, compute it, then count its rows."""
        model, slots = self._model_and_slots()
        if not batch:
            return []
        caches = slots.caches_for(batch)
        try:
            outputs = model.forward(batch, caches)
        except BaseException:
            # Some caches may have advanced and others not. A later use of a released slot raises an error, while one
            # of an inconsistent slot would give wrong tokens.
            for chunk in batch:
                self.release(chunk.slot)
            raise
        slots.advance(batch)
        return outputs

    def truncate(self, slot: int, position: int) -> None:
        """Drop positions from `position` on."""
        model, slots = self._model_and_slots()
        model.truncate(slots.truncate(slot, position), position)

    def save(self, slot: int, start: int, end: int) -> SavedKV:
        """Copy positions of a slot."""
        model, slots = self._model_and_slots()
        return model.save(slots.cache_with(slot, start, end), start, end)

    def restore(self, slot: int, saved: SavedKV) -> None:
        """Continue a slot with a copy."""
        model, slots = self._model_and_slots()
        model.restore(slots.extend(slot, saved.start, saved.end), saved)

    def release(self, slot: int) -> None:
        """Free the slot's cache."""
        model, slots = self._model_and_slots()
        if (cache := slots.release(slot)) is not None:
            model.release(cache)

    def close(self) -> None:
        """Drop weights and slots."""
        self._loaded = None

    def _model_and_slots(self) -> tuple[ShardModel[CacheT], SlotTable[CacheT]]:
        if self._loaded is None:
            raise EngineError("this engine holds no shard yet; load one first")
        return self._loaded
