"""What the engines share: one stage, its slots, and the order of checking, computing and counting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from cluster.shard import Shard
from engines.engine import Chunk, EngineError, FloatArray, InferenceEngine, SavedKV
from engines.slot_table import SlotTable
from models.config import Dtype, ModelConfig
from models.weights import Weights

CacheT = TypeVar("CacheT")


class ShardModel(Protocol[CacheT]):
    """One shard's arithmetic. It keeps no slots: each call brings the caches of its chunks."""

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        ...

    @property
    def shard(self) -> Shard:
        """The layers that this stage owns."""
        ...

    @property
    def position_bytes(self) -> int:
        """As `InferenceEngine.position_bytes`."""
        ...

    def cache(self) -> CacheT:
        """An empty cache for one slot."""
        ...

    def forward(self, batch: Sequence[Chunk], caches: Sequence[CacheT]) -> list[FloatArray]:
        """As `InferenceEngine.forward`, for chunks that are already checked."""
        ...

    def truncate(self, cache: CacheT, position: int) -> None:
        """Set a cache back to its first `position` positions."""
        ...

    def save(self, cache: CacheT, start: int, end: int) -> SavedKV:
        """Copy positions that the cache holds."""
        ...

    def restore(self, cache: CacheT, saved: SavedKV) -> None:
        """Write a copy behind the first `saved.start` positions, which are all that the cache holds."""
        ...

    def release(self, cache: CacheT) -> None:
        """Nobody will use this cache again."""
        ...


class SlotEngine(InferenceEngine, Generic[CacheT]):
    """An engine made of a `Stage`; a subclass says how to build the stage for a model family."""

    def __init__(self) -> None:
        self._held: tuple[ShardModel[CacheT], SlotTable[CacheT]] | None = None

    @abstractmethod
    def build(self, shard: Shard, weights: Weights) -> ShardModel[CacheT]:
        """Read the shard's tensors; EngineError for a family that the engine does not know."""

    def read(self, shard: Shard, weights: Weights) -> None:
        """Build the stage, once."""
        if self._held is not None:
            raise EngineError(f"this engine already holds {self._held[0].shard}; start another for {shard}")
        if shard.n_layers != weights.config.n_layers:
            raise EngineError(
                f"{shard} is cut for {shard.n_layers} layers but the weights have {weights.config.n_layers};"
                " fetch the model that the shard names"
            )
        stage = self.build(shard, weights)
        self._held = stage, SlotTable(shard, stage.config, stage.cache)

    @property
    def activations(self) -> Dtype:
        """The model's own dtype."""
        return self._loaded()[0].config.dtype

    @property
    def position_bytes(self) -> int:
        """Over all layers of the shard."""
        return self._loaded()[0].position_bytes

    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]:
        """Check the whole batch, compute it, then count its rows."""
        stage, slots = self._loaded()
        if not batch:
            return []
        caches = slots.admit(batch)
        try:
            answers = stage.forward(batch, caches)
        except BaseException:
            # Some caches have moved on, others not: a slot that is gone is loud, one that is wrong is not.
            for chunk in batch:
                self.release(chunk.slot)
            raise
        slots.advance(batch)
        return answers

    def truncate(self, slot: int, position: int) -> None:
        """Forget positions from `position` on."""
        stage, slots = self._loaded()
        stage.truncate(slots.truncate(slot, position), position)

    def save(self, slot: int, start: int, end: int) -> SavedKV:
        """Copy positions of a slot."""
        stage, slots = self._loaded()
        return stage.save(slots.held(slot, start, end), start, end)

    def restore(self, slot: int, saved: SavedKV) -> None:
        """Continue a slot with a copy."""
        stage, slots = self._loaded()
        stage.restore(slots.extend(slot, saved.start, saved.end), saved)

    def release(self, slot: int) -> None:
        """Drop the slot's cache."""
        stage, slots = self._loaded()
        if (cache := slots.release(slot)) is not None:
            stage.release(cache)

    def close(self) -> None:
        """Drop weights and slots."""
        self._held = None

    def _loaded(self) -> tuple[ShardModel[CacheT], SlotTable[CacheT]]:
        if self._held is None:
            raise EngineError("this engine holds no shard yet; load one first")
        return self._held
