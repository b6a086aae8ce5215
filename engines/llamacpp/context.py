"""One model that llama.cpp has loaded, with its memory for keys and values: passes, and positions of sequences.

Knows sequences by number, and no slots. All methods are called from one thread.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.machine import return_mapped_pages
from engines.engine import FloatArray
from engines.errors import EngineError
from engines.llamacpp.abi import FLASH_ATTENTION, ROWS_OF_FOUR_POSITIONS, Batch
from engines.llamacpp.library import Library
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
    """A loaded GGUF file. `cells` positions of all sequences together fit its memory for keys and values."""

    def __init__(
        self, library: Library, path: Path, cells: int, sequences: int, *, has_head: bool, copied: bool = False
    ) -> None:
        """Load the file. Without a head, passes give the hidden states of the last layer. Raises EngineError.

        With `copied` the library stores most weights in another order: the file's pages, which it has mapped, would
        stay in memory beside that copy.
        """
        self._library = library
        self._reader: OutputReader | None = None
        self._context = None
        self._model = self._load(path)
        if copied:
            return_mapped_pages()
        if library.is_recurrent(self._model) or library.is_hybrid(self._model):
            self.close()
            raise EngineError(
                f"{path.name} keeps one state for all positions of a text, of which llama.cpp drops and copies no part;"
                " pick a model with attention in all layers"
            )
        self.vocab_size = int(library.n_tokens(library.vocabulary(self._model)))
        self._hidden = int(library.n_embd(self._model))
        self._four_positions = library.rope_type(self._model) in ROWS_OF_FOUR_POSITIONS
        if not has_head:
            self._reader = OutputReader(library, library.n_layers(self._model) - 1)
        self._context = self._new_context(cells, sequences)
        self._memory = library.memory(self._context)

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
        return output.reshape(len(rows.positions), self._hidden)

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
        """Free the model and its memory. Closing twice is not an error."""
        if self._context is not None:
            self._library.free_context(self._context)
        if self._model is not None:
            self._library.free_model(self._model)
        self._context = self._model = None

    def _load(self, path: Path) -> Any:
        self._library.first_error, self._library.model = "", path.name
        model = self._library.load_model(os.fsencode(path), self._library.model_params())
        if not model:
            raise EngineError(f"llama.cpp cannot load {path}: {self._library.first_error or 'it says no reason'}")
        return model

    def _new_context(self, cells: int, sequences: int) -> Any:
        params = self._library.context_params()
        params.n_ctx, params.n_seq_max = cells, sequences
        params.n_batch = params.n_ubatch = MAX_ROWS
        params.n_threads = params.n_threads_batch = threads()
        # Without it a row's numbers depend on the other rows of its pass.
        params.flash_attn_type = FLASH_ATTENTION
        # One memory for all sequences, in which every position stays: so rows keep their order in a pass, and any
        # positions can be dropped and copied.
        params.kv_unified = params.swa_full = params.no_perf = True
        if self._reader is not None:
            params.cb_eval = ctypes.cast(self._reader.callback, ctypes.c_void_p)
        self._library.first_error = ""
        context = self._library.new_context(self._model, params)
        if not context:
            self.close()
            raise EngineError(f"llama.cpp cannot make a context of {cells} positions: {self._library.first_error}")
        return context

    def _decode(self, rows: Rows) -> None:
        count = len(rows.positions)
        if self._reader is not None:
            self._reader.output = None
        inputs, positions = np.ascontiguousarray(rows.inputs), np.ascontiguousarray(rows.positions)
        if inputs.ndim == 2 and self._four_positions:
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
            return np.empty((0, self.vocab_size), np.float32)
        self._library.synchronize(self._context)
        found = np.ctypeslib.as_array(self._library.logits(self._context), (count * self.vocab_size,))
        return found.reshape(count, self.vocab_size).copy()


def _address(array: np.ndarray) -> int:
    # `array.ctypes` would take longer.
    return int(array.__array_interface__["data"][0])
