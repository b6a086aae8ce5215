"""Which slots exist and how many positions each holds. Knows nothing of what an engine keeps per slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cluster.shard import Shard
from engines.engine import MAX_SLOTS, Chunk, EngineError
from models.config import ModelConfig

CacheT = TypeVar("CacheT")


class SlotTable(Generic[CacheT]):
    """The caches of an engine by slot number, with the checks that make a lost frame loud."""

    def __init__(self, shard: Shard, config: ModelConfig, create: Callable[[], CacheT]) -> None:
        self._shard = shard
        self._config = config
        self._create = create
        self._caches: dict[int, CacheT] = {}
        self._lengths: dict[int, int] = {}

    def length(self, slot: int) -> int:
        """How many positions the slot holds; 0 for one that does not exist yet."""
        return self._lengths.get(slot, 0)

    def admit(self, batch: Sequence[Chunk]) -> list[CacheT]:
        """Check the whole batch, then answer each chunk's cache. Raises EngineError with no slot changed."""
        seen: set[int] = set()
        for chunk in batch:
            if chunk.slot in seen:
                raise EngineError(f"slot {chunk.slot} is twice in one batch; send its chunks in turn")
            seen.add(chunk.slot)
            self._check_place(chunk)
            self._check_shape(chunk)
        fresh = seen - self._caches.keys()
        self._check_room(len(fresh))
        for slot in fresh:
            self._caches[slot] = self._create()
        return [self._caches[chunk.slot] for chunk in batch]

    def advance(self, batch: Sequence[Chunk]) -> None:
        """Count the batch's rows, once they are computed."""
        for chunk in batch:
            self._lengths[chunk.slot] = chunk.position + chunk.rows

    def truncate(self, slot: int, position: int) -> CacheT:
        """Set the slot back to `position` positions and answer its cache."""
        if slot not in self._lengths:
            raise EngineError(f"slot {slot} does not exist on this stage, so it has no position {position}")
        if not 0 <= position <= self._lengths[slot]:
            raise EngineError(f"slot {slot} holds {self._lengths[slot]} positions, not {position} or more")
        self._lengths[slot] = position
        return self._caches[slot]

    def held(self, slot: int, start: int, end: int) -> CacheT:
        """The cache of a slot that holds positions `start` to `end`. Raises EngineError."""
        if not 0 <= start < end <= self.length(slot):
            raise EngineError(f"slot {slot} holds {self.length(slot)} positions, so not {start} to {end}")
        return self._caches[slot]

    def extend(self, slot: int, start: int, end: int) -> CacheT:
        """The cache of a slot, a fresh one where `start` is 0, whose positions are to be `end`. Raises EngineError."""
        if start != self.length(slot) or not start < end <= self._config.context_length:
            raise EngineError(f"slot {slot} holds {self.length(slot)} positions and takes no copy of {start} to {end}")
        if slot not in self._caches:
            self._check_room(1)
            self._caches[slot] = self._create()
        self._lengths[slot] = end
        return self._caches[slot]

    def release(self, slot: int) -> CacheT | None:
        """Forget the slot, if it is there, and answer its cache."""
        self._lengths.pop(slot, None)
        return self._caches.pop(slot, None)

    def _check_room(self, fresh: int) -> None:
        if len(self._caches) + fresh > MAX_SLOTS:
            raise EngineError(f"this engine holds {len(self._caches)} of {MAX_SLOTS} slots; close a session first")

    def _check_place(self, chunk: Chunk) -> None:
        held = self.length(chunk.slot)
        if chunk.position != held:
            raise EngineError(
                f"slot {chunk.slot} holds {held} positions but a chunk came for position {chunk.position}:"
                " a frame was lost or repeated, so replay the session"
            )
        end = chunk.position + chunk.rows
        if end > self._config.context_length:
            raise EngineError(
                f"slot {chunk.slot} would hold {end} positions but the model's context ends at"
                f" {self._config.context_length}; shorten the prompt or the answer"
            )

    def _check_shape(self, chunk: Chunk) -> None:
        if self._shard.is_first:
            fits = chunk.inputs.ndim == 1 and chunk.inputs.dtype.kind in "iu"
            wanted = "token ids of shape (rows,)"
        else:
            fits = chunk.inputs.ndim == 2 and chunk.inputs.shape[1] == self._config.hidden_size
            fits = fits and chunk.inputs.dtype.kind == "f"
            wanted = f"hidden states of shape (rows, {self._config.hidden_size})"
        fits = fits and 0 <= chunk.logits <= chunk.rows
        if not fits or chunk.rows == 0:
            raise EngineError(f"{self._shard} wants {wanted}, got {chunk.inputs.dtype} of shape {chunk.inputs.shape}")
        vocabulary = self._config.vocab_size
        if self._shard.is_first and not 0 <= chunk.inputs.min() <= chunk.inputs.max() < vocabulary:
            raise EngineError(f"a token id is outside the vocabulary of {vocabulary}; tokeniser and model differ")
