"""One shard in an ONNX Runtime session. Single rows of many slots are one run; a longer chunk is a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from cluster.shard import Shard
from engines.engine import NO_LOGITS, Chunk, FloatArray, SavedKV
from engines.logits import split_logits, wanted_rows
from engines.onnx.batch_layout import BatchLayout, Padding, lay_out
from engines.onnx.graph import Graph
from engines.onnx.kv_pool import KVPool
from engines.onnx.model import ropes_of
from engines.rope import rotations
from engines.threads import threads
from models.architecture import Architecture, Rope
from models.sizes import shard_sizes
from models.weights.quantized import BlockMatrix

FIRST_ROPE_POSITIONS = 256
MAX_BINDINGS = 64

SPARE_POSITIONS = 16
"""Positions after the context, for a spare step. This many keep each head's memory in whole pages."""


class OnnxShardModel:
    """A graph's session, and the pool of keys and values that it reads and writes in place.

    A slot's cache is its entry in the pool.
    """

    def __init__(
        self,
        architecture: Architecture,
        shard: Shard,
        graph: Graph,
        embedding: FloatArray | BlockMatrix | None,
        padding: Padding,
    ) -> None:
        self.architecture = architecture
        self.shard = shard
        self.sizes = shard_sizes(architecture, shard)
        self._session = new_session(graph)
        self._embedding = embedding
        self._padding = padding
        heads = architecture.heads
        self._ropes = ropes_of(architecture, shard)
        self._rope_positions = FIRST_ROPE_POSITIONS
        self._rope_tables = _rope_tables(self._ropes, FIRST_ROPE_POSITIONS)
        capacity = architecture.context_length + SPARE_POSITIONS
        self._pool = KVPool(len(shard.layers), heads.kv_heads, capacity, heads.head_dim)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    def new_cache(self) -> int:
        """Take a pool entry for one slot."""
        return self._pool.allocate()

    def truncate(self, cache: int, position: int) -> None:
        """Do nothing: what lies after a slot's end is overwritten before it is read."""

    def save(self, cache: int, start: int, end: int) -> SavedKV:
        """Copy positions that the entry holds."""
        return self._pool.save(cache, start, end)

    def restore(self, cache: int, saved: SavedKV) -> None:
        """Append a copy."""
        self._pool.restore(cache, saved)

    def release(self, cache: int) -> None:
        """Free the entry for another slot."""
        self._pool.free(cache)

    def forward(self, batch: Sequence[Chunk], caches: Sequence[int]) -> list[FloatArray]:
        """Compute each chunk's hidden states (rows, hidden), or on the last stage its logits (logits, vocab).

        The attention kernel takes several sequences of one row each, or one sequence, so chunks of more rows run alone.
        From about thirty rows on that costs nothing, since a product's time then grows with its rows.
        """
        self._extend_rope_tables(max(chunk.position + chunk.rows for chunk in batch) + SPARE_POSITIONS)
        outputs = [NO_LOGITS] * len(batch)
        single = [index for index, chunk in enumerate(batch) if chunk.rows == 1]
        longer = [[index] for index, chunk in enumerate(batch) if chunk.rows > 1]
        for group in [single, *longer] if single else longer:
            run = self._run([batch[index] for index in group], [caches[index] for index in group])
            for index, output in zip(group, run, strict=True):
                outputs[index] = output
        return outputs

    def _run(self, chunks: Sequence[Chunk], entries: Sequence[int]) -> list[FloatArray]:
        """Run chunks of one row each, or one chunk, over all pool entries from the first to the last of theirs.

        In an entry between them that has no chunk, the run overwrites position 0, which is restored afterwards.
        """
        layout = lay_out(tuple(entries), chunks[0].rows, self._padding)
        idle = list(layout.idle)
        overwritten = self._pool.array[:, :, idle, :, 0].copy() if idle else None
        output = self._execute(chunks, layout)
        if overwritten is not None:
            self._pool.array[:, :, idle, :, 0] = overwritten
        if self.shard.is_last:
            return split_logits(output, chunks)
        return list(output.reshape(len(chunks), -1, self.architecture.hidden_size))

    def _execute(self, chunks: Sequence[Chunk], layout: BatchLayout) -> FloatArray:
        """Run the session. Returns hidden states (rows, hidden) or logits (wanted rows, vocab) of all chunks."""
        hidden = self._hidden(np.concatenate([chunk.inputs for chunk in chunks]))
        rows = len(hidden)
        hidden = _with_copies(hidden, layout.copies)
        last_positions = np.zeros(layout.end - layout.first, np.int32)
        last_positions[layout.entries] = [chunk.position + chunk.rows + layout.spare - 1 for chunk in chunks]
        inputs: dict[str, np.ndarray] = {
            "hidden": hidden,
            "pad_index": layout.pad_index,
            "unpad_index": layout.unpad_index,
            "seqlens_k": last_positions,
            "total_sequence_length": last_positions.max(keepdims=True) + np.int32(1),
        }
        if self.shard.is_last:
            wanted = wanted_rows(chunks)
            inputs["wanted"] = wanted = _with_copies(wanted, max(self._padding.wanted - len(wanted), 0))
            output = np.empty((len(wanted), self.architecture.vocab_size), np.float32)
        else:
            output = np.empty_like(hidden)
        binding = self._binding((layout.first, layout.end))
        for name, array in inputs.items():
            _bind(binding.bind_input, name, array)
        _bind(binding.bind_output, "output", output)
        self._session.run_with_iobinding(binding)
        return output if self.shard.is_last else output[:rows]

    def _hidden(self, inputs: np.ndarray) -> FloatArray:
        """Embed token ids (rows,), or convert hidden states (rows, hidden) to float32."""
        if self._embedding is None:
            return inputs.astype(np.float32)
        embedding = self._embedding
        rows = embedding[inputs] if isinstance(embedding, np.ndarray) else embedding.rows(inputs)
        scale = np.float32(self.architecture.embedding_scale)
        return rows if scale == 1 else rows * scale

    def _binding(self, span: tuple[int, int]) -> onnxruntime.IOBinding:
        """Return a binding of these pool entries and the rope tables, which is made once and reused."""
        if span in self._bindings:
            return self._bindings[span]
        if len(self._bindings) == MAX_BINDINGS:
            self._bindings.clear()
        binding = self._bindings[span] = self._session.io_binding()
        for name, array in self._rope_tables.items():
            _bind(binding.bind_input, name, array)
        for index, layer in enumerate(self._pool.array):
            for part, memory in zip(("key", "value"), layer[:, slice(*span)], strict=True):
                _bind(binding.bind_input, f"past_{part}_{index}", memory)
                _bind(binding.bind_output, f"present_{part}_{index}", memory)
        return binding

    def _extend_rope_tables(self, positions: int) -> None:
        """Make the tables long enough for `positions` positions."""
        if self._rope_positions < positions:
            self._rope_positions = max(positions, 2 * self._rope_positions)
            self._rope_tables = _rope_tables(self._ropes, self._rope_positions)
            self._bindings.clear()


def _with_copies(rows: np.ndarray, copies: int) -> np.ndarray:
    """Append copies of the first row, if there is one."""
    return np.concatenate((rows, rows[:1].repeat(copies, axis=0))) if copies else rows


def _rope_tables(ropes: Sequence[Rope], positions: int) -> dict[str, FloatArray]:
    """Compute what the attention kernel rotates queries and keys by: (positions, dims / 2) each."""
    tables = {}
    for index, rope in enumerate(ropes):
        tables[f"cos_cache_{index}"], tables[f"sin_cache_{index}"] = rotations(rope, np.arange(positions))
    return tables


def new_session(graph: Graph) -> onnxruntime.InferenceSession:
    """Make a session on the CPU. None of its threads spins."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The runtime copies them, in the fewest steps of all ways to pass weights, and keeps no more than it needs.
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
    options.add_external_initializers(list(graph.weights), values)
    return onnxruntime.InferenceSession(graph.serialized(), options, providers=["CPUExecutionProvider"])


def _bind(bind: Callable[..., None], name: str, array: np.ndarray) -> None:
    # `array.ctypes` would take longer than the binding.
    bind(name, "cpu", 0, array.dtype, array.shape, array.__array_interface__["data"][0])
