"""Which slots exist and how many positions each holds. Does not look into what an engine caches for a slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cluster.shard import Shard
from engines.engine import Chunk
from engines.errors import EngineError
from engines.settings import MAX_SLOTS
from models.sizes import ShardSizes

CacheT = TypeVar("CacheT")


class SlotTable(Generic[CacheT]):
    """The caches of an engine by slot number. Its checks turn a lost or repeated frame into an EngineError."""

    def __init__(self, shard: Shard, sizes: ShardSizes, new_cache: Callable[[], CacheT]) -> None:
        self._shard = shard
        self._sizes = sizes
        self._new_cache = new_cache
        self._caches: dict[int, CacheT] = {}
        self._lengths: dict[int, int] = {}

    def length(self, slot: int) -> int:
        """Return how many positions the slot holds; 0 if it does not exist yet."""
        return self._lengths.get(slot, 0)

    def caches_for(self, batch: Sequence[Chunk]) -> list[CacheT]:
        """Check the whole batch, then return each chunk's cache. Raises EngineError without changing a slot."""
        seen: set[int] = set()
        for chunk in batch:
            if chunk.slot in seen:
                raise EngineError(f"slot {chunk.slot} is twice in one batch; send its chunks one after another")
            seen.add(chunk.slot)
            self._check_position(chunk)
            self._check_inputs(chunk)
        fresh = seen - self._caches.keys()
        self._check_free(len(fresh))
        for slot in fresh:
            self._caches[slot] = self._new_cache()
        return [self._caches[chunk.slot] for chunk in batch]

    def advance(self, batch: Sequence[Chunk]) -> None:
        """Count the batch's rows after they are computed."""
        for chunk in batch:
            self._lengths[chunk.slot] = chunk.position + chunk.rows

    def truncate(self, slot: int, position: int) -> CacheT:
        """Keep the first `position` positions of the slot. Returns its cache, or raises EngineError."""
        if slot not in self._lengths:
            raise EngineError(f"slot {slot} does not exist on this stage, so it has no position {position}")
        if not 0 <= position <= self._lengths[slot]:
            raise EngineError(f"slot {slot} holds {self._lengths[slot]} positions, not {position} or more")
        self._lengths[slot] = position
        return self._caches[slot]

    def cache_with(self, slot: int, start: int, end: int) -> CacheT:
        """Return the slot's cache. Raises EngineError unless it holds positions `start` to `end`."""
        if not 0 <= start < end <= self.length(slot):
            raise EngineError(f"slot {slot} holds {self.length(slot)} positions, so not {start} to {end}")
        return self._caches[slot]

    def extend(self, slot: int, start: int, end: int) -> CacheT:
        """Count positions `start` to `end`, which a copy brings. Returns the slot's cache, or raises EngineError.

        A slot that does not exist yet holds 0 positions and gets a new cache.
        """
        if start != self.length(slot) or not start < end <= self._sizes.context_length:
            raise EngineError(f"slot {slot} holds {self.length(slot)} positions and takes no copy of {start} to {end}")
        if slot not in self._caches:
            self._check_free(1)
            self._caches[slot] = self._new_cache()
        self._lengths[slot] = end
        return self._caches[slot]

    def release(self, slot: int) -> CacheT | None:
        """Forget the slot. Returns its cache, or None if there is no such slot."""
        self._lengths.pop(slot, None)
        return self._caches.pop(slot, None)

    def _check_free(self, fresh: int) -> None:
        """Raise EngineError unless `fresh` more slots fit."""
        if len(self._caches) + fresh > MAX_SLOTS:
            raise EngineError(f"this engine holds {len(self._caches)} of {MAX_SLOTS} slots; close a session first")

    def _check_position(self, chunk: Chunk) -> None:
        """Raise EngineError if the chunk does not continue its slot, or would pass the end of the context."""
        held = self.length(chunk.slot)
        if chunk.position != held:
            raise EngineError(
                f"slot {chunk.slot} holds {held} positions but a chunk came for position {chunk.position}:"
                " a frame was lost or repeated, so replay the session"
            )
        end = chunk.position + chunk.rows
        if end > self._sizes.context_length:
            raise EngineError(
                f"slot {chunk.slot} would hold {end} positions but the model's context ends at"
                f" {self._sizes.context_length}; shorten the prompt or the answer"
            )

    def _check_inputs(self, chunk: Chunk) -> None:
        """Raise EngineError for a wrong shape or dtype, an unknown token id, or more logits than rows."""
        if self._shard.is_first:
            fits = chunk.inputs.ndim == 1 and chunk.inputs.dtype.kind in "iu"
            expected = "token ids of shape (rows,)"
        else:
            fits = chunk.inputs.ndim == 2 and chunk.inputs.shape[1] == self._sizes.hidden_size
            fits = fits and chunk.inputs.dtype.kind == "f"
            expected = f"hidden states of shape (rows, {self._sizes.hidden_size})"
        fits = fits and 0 <= chunk.logits <= chunk.rows
        if not fits or chunk.rows == 0:
            raise EngineError(
                f"{self._shard} expects {expected}, got {chunk.inputs.dtype} of shape {chunk.inputs.shape}"
            )
        vocabulary = self._sizes.vocab_size
        if self._shard.is_first and not 0 <= chunk.inputs.min() <= chunk.inputs.max() < vocabulary:
            raise EngineError(f"a token id is outside the vocabulary of {vocabulary}; tokenizer and model differ")
