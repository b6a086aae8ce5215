"""What the engines share: one shard's model, its slots, and the order of checking, computing and counting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

from cluster.shard import Shard
from engines.engine import Chunk, FloatArray, InferenceEngine, SavedKV
from engines.errors import EngineError
from engines.fixed_cuts import joined, pieces
from engines.slot_table import SlotTable
from models.architecture import Dtype
from models.sizes import ShardSizes
from models.weights.reader import Weights, sizes_of

CacheT = TypeVar("CacheT")


class ShardModel(Protocol[CacheT]):
    """The arithmetic of one shard. It keeps no slots: each call brings the caches of its chunks."""

    @property
    def sizes(self) -> ShardSizes:
        """What inputs are checked against, and what a position takes."""
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

    With `reads_folders` it runs the model in a folder by classes of its own, whether or not exobus describes it.
    """

    reads_folders: ClassVar[bool] = False

    lone_passes: bool = False
    """Whether a pass has rows of one slot only, cut at fixed positions. That makes every engine invariant whose caches
    are each slot's own, whatever its kernels do."""

    def __init__(self, *, invariant: bool = False) -> None:
        self._loaded: tuple[ShardModel[CacheT], SlotTable[CacheT]] | None = None
        self.invariant = self.lone_passes = invariant

    @abstractmethod
    def build(self, shard: Shard, weights: Weights) -> ShardModel[CacheT]:
        """Read the shard's tensors of a model that the engine supports."""

    def read(self, shard: Shard, weights: Weights) -> None:
        """Build the model, once.

        Raises EngineError for a second call, a shard of another number of layers, or a model that it does not support,
        and WeightsError for one that exobus does not describe, unless the engine reads folders.
        """
        self.check_fits(shard, sizes_of(weights).n_layers)
        reads_it = self.reads_folders and weights.repository is not None and weights.repository.path.is_dir()
        if not reads_it and (reason := self.supports(weights.architecture)) is not None:
            raise EngineError(f"the {self.name} engine {reason}; try numpy")
        self.hold(self.build(shard, weights))

    def check_fits(self, shard: Shard, n_layers: int) -> None:
        """Raise EngineError if the engine holds a shard already, or the weights have another number of layers."""
        if self._loaded is not None:
            raise EngineError(f"this engine already holds {self._loaded[0].shard}; start another for {shard}")
        if shard.n_layers != n_layers:
            raise EngineError(
                f"{shard} is cut for {shard.n_layers} layers but the weights have {n_layers};"
                " fetch the model that the shard names"
            )

    def hold(self, model: ShardModel[CacheT]) -> None:
        """Serve a model that was built."""
        self._loaded = model, SlotTable(model.shard, model.sizes, model.new_cache)

    @property
    def activations(self) -> Dtype:
        """The model's own dtype."""
        return self._model_and_slots()[0].sizes.dtype

    @property
    def position_bytes(self) -> int:
        """The bytes of keys and values that one position takes in all layers of the shard."""
        model, _ = self._model_and_slots()
        return model.sizes.position_bytes

    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]:
        """Check the whole batch, compute it, then count its rows."""
        model, slots = self._model_and_slots()
        if not batch:
            return []
        caches = slots.caches_for(batch)
        try:
            outputs = _in_lone_passes(model, batch, caches) if self.lone_passes else model.forward(batch, caches)
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


def _in_lone_passes(model: ShardModel[CacheT], batch: Sequence[Chunk], caches: Sequence[CacheT]) -> list[FloatArray]:
    return [
        joined([model.forward([piece], [cache])[0] for piece in pieces(chunk)])
        for chunk, cache in zip(batch, caches, strict=True)
    ]
