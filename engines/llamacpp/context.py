"""Passes through a model that llama.cpp has loaded, with a memory for keys and values, and positions of sequences.

Knows sequences by number, and no slots. All methods are called from one thread.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.engine import FloatArray
from engines.errors import EngineError
from engines.llamacpp.abi import FLASH_ATTENTION, Batch
from engines.llamacpp.loaded_model import LoadedModel
from engines.llamacpp.output_reader import OutputReader
from engines.threads import threads

MAX_ROWS = 512
"""The most rows of one pass."""

FULL = 1  # what llama_decode returns if no cells are free
_ALL = -1

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows of one pass: token ids (rows,) int32 or hidden states (rows, hidden) float32, and for each its sequence,
    its position, and whether its output is wanted.
    """

    inputs: np.ndarray
    sequences: Integers
    positions: Integers
    wanted: npt.NDArray[np.int8]

    def part(self, start: int, end: int) -> Rows:
        """Return the rows `start` to `end`."""
        piece = slice(start, end)
        return Rows(self.inputs[piece], self.sequences[piece], self.positions[piece], self.wanted[piece])


class Context:
    """A memory of `cells` positions of all `sequences` together, for passes of at most `rows` rows through a model."""

    def __init__(self, model: LoadedModel, cells: int, sequences: int, rows: int = MAX_ROWS) -> None:
        """Take the memory. Raises EngineError if there is not enough."""
        self._library, self._model, self.cells = model.library, model, cells
        self._reader = None if model.has_head else OutputReader(model.library, model.n_layers - 1)
        self._context = self._new_context(cells, sequences, rows)
        self._memory = self._library.memory(self._context)

    def run(self, rows: Rows) -> FloatArray:
        """Compute at most MAX_ROWS rows. Returns the hidden states of all, or the logits of the wanted ones.

        Raises EngineError if no cells are free, or the library fails; then the rows' sequences may hold anything.
        """
        self._decode(rows)
        if self._reader is None:
            return self._logits(int(rows.wanted.sum()))
        if self._reader.output is None:
            self._reader.forget()
            for sequence in np.unique(rows.sequences):
                self.remove(int(sequence), int(rows.positions[rows.sequences == sequence].min()))
            self._decode(rows)
        output = self._reader.output
        if output is None:
            raise EngineError("llama.cpp computed no output of the last layer; run this model whole on one node")
        return output.reshape(len(rows.positions), self._model.hidden)

    def remove(self, sequence: int, position: int = 0) -> None:
        """Drop a sequence's positions from `position` on. Raises EngineError if the library cannot."""
        if not self._library.remove(self._memory, sequence, position, _ALL):
            raise EngineError("llama.cpp cannot drop single positions of this model; close the session")

    def share(self, source: int, target: int, start: int = 0, end: int = _ALL) -> None:
        """Let the sequence `target` hold positions of `source` as well. No cell is copied."""
        self._library.copy(self._memory, source, target, start, end)

    def state(self, sequence: int) -> npt.NDArray[np.uint8]:
        """Copy all positions of a sequence."""
        state = np.empty(self._library.state_size(self._context, sequence), np.uint8)
        written = self._library.get_state(self._context, state.ctypes.data, state.nbytes, sequence)
        if written != state.nbytes:
            raise EngineError(f"llama.cpp copied {written} of {state.nbytes} bytes of a sequence; close the session")
        return state

    def set_state(self, sequence: int, state: npt.NDArray[np.uint8]) -> None:
        """Fill an empty sequence with a copy. Raises EngineError if no cells are free."""
        if not self._library.set_state(self._context, state.ctypes.data, state.nbytes, sequence):
            raise EngineError("llama.cpp has no room for the stored positions; close a session first")

    def close(self) -> None:
        """Free the memory. Closing twice is not an error."""
        if self._context is not None:
            self._library.free_context(self._context)
        self._context = None

    def _new_context(self, cells: int, sequences: int, rows: int) -> Any:
        params = self._library.context_params()
        params.n_ctx, params.n_seq_max = cells, sequences
        params.n_batch = params.n_ubatch = rows
        params.n_threads = params.n_threads_batch = threads()
        # Without it a row's numbers depend on the other rows of its pass.
        params.flash_attn_type = FLASH_ATTENTION
        # One memory for all sequences, in which every position stays: so rows keep their order in a pass, and any
        # positions can be dropped and copied.
        params.kv_unified = params.swa_full = params.no_perf = True
        if self._reader is not None:
            params.cb_eval = ctypes.cast(self._reader.callback, ctypes.c_void_p)
        self._library.first_error = ""
        context = self._library.new_context(self._model.model, params)
        if not context:
            raise EngineError(f"llama.cpp cannot make a context of {cells} positions: {self._library.first_error}")
        return context

    def _decode(self, rows: Rows) -> None:
        count = len(rows.positions)
        if self._reader is not None:
            self._reader.output = None
        inputs, positions = np.ascontiguousarray(rows.inputs), np.ascontiguousarray(rows.positions)
        if inputs.ndim == 2 and self._model.four_positions:
            positions = np.concatenate([positions, positions, positions, np.zeros_like(positions)])
        sequences, wanted = np.ascontiguousarray(rows.sequences), np.ascontiguousarray(rows.wanted)
        one_each = np.ones(count, np.int32)
        pointers = np.arange(count, dtype=np.uint64) * np.uint64(4) + np.uint64(_address(sequences))
        self._library.first_error = ""
        tokens, hidden = (_address(inputs), None) if inputs.ndim == 1 else (None, _address(inputs))
        arrays = (_address(array) for array in (positions, one_each, pointers, wanted))
        status = self._library.decode(self._context, Batch(count, tokens, hidden, *arrays))
        if status == FULL:
            raise EngineError("no memory is left for keys and values; close a session first")
        if status:
            raise EngineError(f"llama.cpp failed to compute (status {status}): {self._library.first_error}")

    def _logits(self, count: int) -> FloatArray:
        if not count:
            return np.empty((0, self._model.vocab_size), np.float32)
        self._library.synchronize(self._context)
        found = np.ctypeslib.as_array(self._library.logits(self._context), (count * self._model.vocab_size,))
        return found.reshape(count, self._model.vocab_size).copy()


def _address(array: np.ndarray) -> int:
    # `array.ctypes` would take longer.
    return int(array.__array_interface__["data"][0])
