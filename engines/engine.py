"""What every engine offers, in token ids and arrays. Knows no text, sessions, sockets or other stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from models.config import Dtype
from models.weights import Weights, open_weights

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

NO_LOGITS: FloatArray = np.empty((0, 0), np.float32)
"""What the last stage answers for a chunk that wants no logits."""

MAX_SLOTS = 64
"""An engine holds at most that many slots at a time."""


class EngineError(Exception):
    """The engine cannot do what it was asked; the text is one sentence for a person."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One sequence's share of a ragged batch.

    `inputs` is int32 token ids of shape (rows,) on the first stage, else floating hidden states of
    shape (rows, hidden). The last stage answers the logits of the last `logits` rows, of none by default.
    """

    slot: int
    position: int
    inputs: Array
    logits: int = 0

    @property
    def rows(self) -> int:
        """How many positions this chunk adds to its slot."""
        return int(self.inputs.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class SavedKV:
    """Keys and values of one shard for positions `start` to `end` of a sequence, in a copy that only its engine reads.

    Keys carry their rotation, so a copy fits sequences that begin with the same tokens, and no others.
    """

    start: int
    end: int
    nbytes: int
    content: Any


class InferenceEngine(ABC):
    """One shard of a model and the KV slots of the sequences that run through it.

    A slot comes into being with its first chunk or copy, at position 0, and lives until `release`. It takes
    `position_bytes` of memory for each position that it holds, and little for those that it may yet hold.
    All methods are called from one thread, the one that called `load`.

    After every layer the hidden states are rounded to `activations`, the model's own dtype, whatever the engine
    computes in. So they cross from stage to stage in that dtype, and a split model has the numbers of a whole one.
    """

    name: ClassVar[str]

    exact_rows: ClassVar[int] = 1
    """How many rows a batch of one chunk may have so that each has the very bits that it has when it comes alone."""

    def load(self, shard: Shard, weights: Path) -> None:
        """Read the shard's own tensors from a safetensors folder or a GGUF file; an engine loads once.

        Raises EngineError for a second load, a shard that does not fit the model or a family that this
        engine does not know, and WeightsError for files that cannot be read.
        """
        with open_weights(weights) as opened:
            self.read(shard, opened)

    @abstractmethod
    def read(self, shard: Shard, weights: Weights) -> None:
        """The same from weights that are open already; nothing of them is kept but the arrays read."""

    @property
    @abstractmethod
    def activations(self) -> Dtype:
        """What the hidden states between two layers are rounded to. EngineError before `load`."""

    @property
    @abstractmethod
    def position_bytes(self) -> int:
        """The bytes of keys and values that one position takes in this shard. EngineError before `load`."""

    @abstractmethod
    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]:
        """Run every chunk through the shard and answer one array for each, in order.

        Not the last stage: hidden states (rows, hidden) float32, rounded to `activations`. The last stage: logits
        (chunk.logits, vocab) float32. Raises EngineError, before any slot has changed, when a position does not
        continue its slot, the context or the engine is full, or a shape is wrong.
        A batch that fails in the midst of the arithmetic loses its slots.
        """

    @abstractmethod
    def truncate(self, slot: int, position: int) -> None:
        """Forget all positions from `position` on; EngineError for an unknown slot or one that is shorter."""

    @abstractmethod
    def save(self, slot: int, start: int, end: int) -> SavedKV:
        """A copy of a slot's positions `start` to `end`; EngineError for positions that the slot does not hold."""

    @abstractmethod
    def restore(self, slot: int, saved: SavedKV) -> None:
        """Continue a slot, which holds exactly `saved.start` positions, with a copy. EngineError where it does not."""

    @abstractmethod
    def release(self, slot: int) -> None:
        """Free a slot. Releasing one that is not there is no error."""

    @abstractmethod
    def capabilities(self) -> EngineCapability:
        """The engine's version and device. `ms_per_layer` is None: `engines.probe` measures it."""

    @abstractmethod
    def close(self) -> None:
        """Drop the weights and all slots. Closing twice is no error."""
