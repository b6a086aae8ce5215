"""llama.cpp's bare loop: `llama_decode` as its own benchmark programs call it, with the library's defaults.

It shares the declared functions of `engines.llamacpp.library` with the engine and nothing else, so the two differ in
all that the engine adds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.llamacpp.abi import Batch
from engines.llamacpp.library import library

CELLS = 4096


class BareLlamaCpp:
    """A whole model with memory for CELLS positions."""

    def __init__(self, path: Path, sequences: int) -> None:
        """Load the file as it is, mapped. Raises AssertionError if the library cannot."""
        self._library = library()
        self._model = self._library.load_model(os.fsencode(path), self._library.model_params())
        assert self._model, f"llama.cpp cannot load {path}"
        params = self._library.context_params()
        params.n_ctx, params.n_seq_max = CELLS, sequences
        params.n_threads = params.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
        self._context = self._library.new_context(self._model, params)
        assert self._context, "llama.cpp cannot make a context"
        self._memory = self._library.memory(self._context)
        self._sequences = sequences

    def run(self, rows: Sequence[tuple[int, int, np.ndarray]]) -> None:
        """Compute all rows in one pass, and wait for the logits of each sequence's last one."""
        ids = np.concatenate([ids for _, _, ids in rows])
        positions = np.concatenate([np.arange(first, first + len(ids)) for _, first, ids in rows]).astype(np.int32)
        sequences = np.concatenate([np.full(len(ids), number) for number, _, ids in rows]).astype(np.int32)
        wanted = np.concatenate([np.arange(len(ids)) == len(ids) - 1 for _, _, ids in rows]).astype(np.int8)
        one_each = np.ones(len(ids), np.int32)
        pointers = np.arange(len(ids), dtype=np.uint64) * np.uint64(4) + np.uint64(sequences.ctypes.data)
        arrays = (array.ctypes.data for array in (positions, one_each, pointers, wanted))
        status = self._library.decode(self._context, Batch(len(ids), ids.ctypes.data, None, *arrays))
        assert status == 0, f"llama_decode returned {status}"
        self._library.synchronize(self._context)
        self._library.logits(self._context)

    def clear(self) -> None:
        """Drop all positions."""
        for sequence in range(self._sequences):
            self._library.remove(self._memory, sequence, -1, -1)
