"""What every engine offers, in token ids and arrays. Knows no text, sessions or other stages."""

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
from models.architecture import Architecture, Dtype
from models.weights.reader import Weights, open_weights

FloatArray = npt.NDArray[np.float32]

NO_LOGITS: FloatArray = np.empty((0, 0), np.float32)
"""The last stage's output for a chunk that wants no logits."""

KV_BYTES = 1 << 24
"""The memory for keys and values if nobody says how much there is."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One sequence's share of a ragged batch: rows that continue `slot` at `position`.

    `inputs` is (rows,) int32 token ids on the first stage, and (rows, hidden) floating hidden states on later ones.
    The last stage outputs the logits of the chunk's last `logits` rows, by default of none.
    """

    slot: int
    position: int
    inputs: np.ndarray
    logits: int = 0

    @property
    def rows(self) -> int:
        """How many positions this chunk adds to its slot."""
        return int(self.inputs.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class SavedKV:
    """A copy of one shard's keys and values for positions `start` to `end` of a sequence.

    `content` is in a form that only the engine that made it can read, and takes `nbytes` bytes. Keys are stored with
    their rotary embedding, so a copy fits only sequences that begin with the same tokens.
    """

    start: int
    end: int
    nbytes: int
    content: Any


class InferenceEngine(ABC):
    """One shard of a model and the KV slots of the sequences that run through it.

    A slot comes into being with its first chunk or copy, at position 0, and lives until `release`. It takes
    `position_bytes` of memory for each position that it holds, and little for those that it may still hold.
    All methods are called from one thread, the one that called `load`.

    After every layer the hidden states are rounded to `activations`, the model's own dtype, whatever the engine
    computes in. So they cross from stage to stage in that dtype, and a split model has the numbers of a whole one.
    """

    name: ClassVar[str]

    saves: bool = True
    """Whether `save`, `restore` and `truncate` work with the loaded model. Without them there are no drafts either."""

    quantized_bits: int = 0
    """To how many bits the loaded model's float matrices were rounded; 0 if all are as they are stored, or float32."""

    exact_rows: int = 1
    """A chunk of up to this many rows, alone in its batch, gives each row the same bits as the row alone would get."""

    invariant: bool = False
    """Whether the chunks of other slots, in a batch or before it, never change a bit of a chunk, nor do the cuts of a
    prompt at multiples of `engines.settings.CUT`, unless one leaves a lone row. A decode step may have other bits
    than a row of a prompt."""

    @classmethod
    def supports(cls, architecture: Architecture) -> str | None:
        """Say why the engine cannot run a model, as what follows its name; None if it can."""
        return None

    def load(self, shard: Shard, weights: Path, kv_bytes: int = KV_BYTES) -> None:
        """Read the shard's tensors from a safetensors folder or a GGUF file. An engine loads only once.

        Keys and values may take `kv_bytes` of memory. An engine that cannot let them grow takes it now.
        Raises EngineError for a second load, a shard that does not fit the model or a model that this engine does
        not support, and WeightsError for files that cannot be read.
        """
        self.read(shard, open_weights(weights))

    @abstractmethod
    def read(self, shard: Shard, weights: Weights) -> None:
        """Load from weights that are already open, which are not used afterwards. Raises what `load` raises."""

    @property
    @abstractmethod
    def activations(self) -> Dtype:
        """The dtype to which hidden states are rounded between two layers. Raises EngineError before `load`."""

    @property
    @abstractmethod
    def position_bytes(self) -> int:
        """The bytes of keys and values that one position takes in this shard. Raises EngineError before `load`."""

    def positions(self, kv_bytes: int) -> int:
        """Return how many positions of sessions and stored copies `kv_bytes` have room for, after a load with them."""
        return kv_bytes // self.position_bytes

    @abstractmethod
    def forward(self, batch: Sequence[Chunk]) -> list[FloatArray]:
        """Run every chunk through the shard. Returns one array for each chunk, in order.

        On the last stage that is logits, (chunk.logits, vocab) float32; on others hidden states, (rows, hidden)
        float32, rounded to `activations`. Raises EngineError, before any slot has changed, if a position does not
        continue its slot, the context or the engine is full, or a shape is wrong. A batch that fails during the
        arithmetic loses its slots.
        """

    @abstractmethod
    def truncate(self, slot: int, position: int) -> None:
        """Drop all positions from `position` on. Raises EngineError for an unknown slot or one that is shorter."""

    @abstractmethod
    def save(self, slot: int, start: int, end: int) -> SavedKV:
        """Copy a slot's positions `start` to `end`. Raises EngineError if the slot does not hold them."""

    @abstractmethod
    def restore(self, slot: int, saved: SavedKV) -> None:
        """Append a copy to a slot. Raises EngineError unless the slot holds exactly `saved.start` positions."""

    @abstractmethod
    def release(self, slot: int) -> None:
        """Free a slot. Releasing an unknown slot is not an error."""

    @abstractmethod
    def capabilities(self) -> EngineCapability:
        """Return the engine's version and device. `ms_per_layer` is None: `engines.probe` measures it."""

    @abstractmethod
    def close(self) -> None:
        """Drop the weights and all slots. Closing twice is not an error."""
