"""One shard in an ONNX Runtime session. Single rows of many slots are one run, a longer chunk is a run of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from cluster.shard import Shard
from engines.engine import NO_LOGITS, Array, Chunk, FloatArray, SavedKV
from engines.logits import shared_out, wanted_rows
from engines.onnx.batch_layout import BatchLayout, lay_out
from engines.onnx.graph import Graph
from engines.onnx.kv_pool import KvPool
from engines.rope import frequencies
from models.config import ModelConfig
from models.quantized import QuantizedMatrix

FIRST_TURNS = 256
MOST_BINDINGS = 64


BEHIND = 16
"""Positions behind the context, for a spare step; so many keep a head's memory in whole pages."""


class OnnxShardModel:
    """A graph with the lanes that it reads and writes in place."""

    def __init__(
        self, config: ModelConfig, shard: Shard, graph: Graph, embedding: FloatArray | QuantizedMatrix | None
    ) -> None:
        self._config = config
        self._shard = shard
        self._session = session(graph)
        self._embedding = embedding
        self._frequencies = frequencies(config)
        self._turns = _turns(self._frequencies, FIRST_TURNS)
        capacity = config.context_length + BEHIND
        self._lanes = KvPool(len(shard.layers), config.n_kv_heads, capacity, config.head_dim)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self._config

    @property
    def shard(self) -> Shard:
        """The layers that this stage owns."""
        return self._shard

    @property
    def position_bytes(self) -> int:
        """Keys and values of one position in all layers, float32."""
        return len(self._shard.layers) * 2 * self._config.n_kv_heads * self._config.head_dim * 4

    def cache(self) -> int:
        """A free lane for one slot."""
        return self._lanes.take()

    def truncate(self, cache: int, position: int) -> None:
        """Nothing to do: what lies behind a slot's end is written over before it is read."""

    def save(self, cache: int, start: int, end: int) -> SavedKV:
        """Copy positions that the lane holds."""
        return self._lanes.save(cache, start, end)

    def restore(self, cache: int, saved: SavedKV) -> None:
        """Write a copy behind what the lane holds."""
        self._lanes.restore(cache, saved)

    def release(self, cache: int) -> None:
        """The lane is free for another slot."""
        self._lanes.give_back(cache)

    def forward(self, batch: Sequence[Chunk], caches: Sequence[int]) -> list[FloatArray]:
        """Each chunk's hidden states (rows, hidden), or on the last stage its last rows' logits (logits, vocab).

        The attention kernel takes several lanes at one row each, or one lane: so chunks of more rows run alone.
        From some thirty rows on that costs nothing, as a product then costs by the row.
        """
        self._reach(max(chunk.position + chunk.rows for chunk in batch) + BEHIND)
        answers = [NO_LOGITS] * len(batch)
        single = [index for index, chunk in enumerate(batch) if chunk.rows == 1]
        longer = [[index] for index, chunk in enumerate(batch) if chunk.rows > 1]
        for group in [single, *longer] if single else longer:
            run = self._run([batch[index] for index in group], [caches[index] for index in group])
            for index, answer in zip(group, run, strict=True):
                answers[index] = answer
        return answers

    def _run(self, chunks: Sequence[Chunk], lanes: Sequence[int]) -> list[FloatArray]:
        """Chunks of one row each, or one chunk, over all lanes from the first to the last of theirs.

        A lane in between that has no chunk gets some row at its position 0, which is put back afterwards.
        """
        grid = lay_out(tuple(lanes), chunks[0].rows)
        idle = list(grid.idle)
        kept = self._lanes.array[:, :, idle, :, 0].copy() if idle else None
        answer = self._compute(chunks, grid)
        if kept is not None:
            self._lanes.array[:, :, idle, :, 0] = kept
        if self._shard.is_last:
            return shared_out(answer, chunks)
        return list(answer.reshape(len(chunks), -1, self._config.hidden_size))

    def _compute(self, chunks: Sequence[Chunk], grid: BatchLayout) -> FloatArray:
        rows = self._enter(np.concatenate([chunk.inputs for chunk in chunks]))
        ends = np.zeros(grid.end - grid.first, np.int32)
        ends[grid.places] = [chunk.position + chunk.rows + grid.spare - 1 for chunk in chunks]
        longest = ends.max(keepdims=True) + np.int32(1)
        inputs = {"hidden": rows, "grid": grid.rows, "order": grid.order, "ends": ends, "longest": longest}
        span = (grid.first, grid.end)
        if not self._shard.is_last:
            return self._execute(span, inputs, np.empty_like(rows))
        inputs["wanted"] = wanted = wanted_rows(chunks)
        return self._execute(span, inputs, np.empty((len(wanted), self._config.vocab_size), np.float32))

    def _execute(self, span: tuple[int, int], inputs: dict[str, Array], answer: FloatArray) -> FloatArray:
        binding = self._binding(span)
        for name, array in inputs.items():
            _bind(binding.bind_input, name, array)
        _bind(binding.bind_output, "answer", answer)
        self._session.run_with_iobinding(binding)
        return answer

    def _binding(self, span: tuple[int, int]) -> onnxruntime.IOBinding:
        """The memory of these lanes and the rope's turns, bound once."""
        if span not in self._bindings:
            if len(self._bindings) == MOST_BINDINGS:
                self._bindings.clear()
            self._bindings[span] = self._bind_lanes(slice(*span))
        return self._bindings[span]

    def _bind_lanes(self, span: slice) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, array in self._turns.items():
            _bind(binding.bind_input, name, array)
        for index, layer in enumerate(self._lanes.array):
            for name, memory in (("keys", layer[0, span]), ("values", layer[1, span])):
                _bind(binding.bind_input, f"{name}_{index}", memory)
                _bind(binding.bind_output, f"new_{name}_{index}", memory)
        return binding

    def _reach(self, positions: int) -> None:
        """Have the rope's turns for that many positions."""
        held = len(self._turns["cosines"])
        if held < positions:
            self._turns = _turns(self._frequencies, max(positions, 2 * held))
            self._bindings.clear()

    def _enter(self, inputs: Array) -> FloatArray:
        if self._embedding is None:
            return inputs.astype(np.float32)
        if isinstance(self._embedding, QuantizedMatrix):
            return self._embedding.rows(inputs)
        return np.asarray(self._embedding[inputs])


def _turns(frequencies: FloatArray, positions: int) -> dict[str, Array]:
    """What the attention kernel turns queries and keys by: (positions, head_dim / 2) each."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    return {"cosines": np.cos(angles), "sines": np.sin(angles)}


def session(graph: Graph) -> onnxruntime.InferenceSession:
    """The graph on the CPU, with as many threads as OMP_NUM_THREADS says, else one a core; none of them spins."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Of all ways to bring weights, this one alone leaves just the kernels' own packed copy behind.
    buffers = list(graph.weights.values())
    options.add_external_initializers_from_files_in_memory(list(graph.weights), buffers, [b.nbytes for b in buffers])
    return onnxruntime.InferenceSession(graph.serialized(), options, providers=["CPUExecutionProvider"])


def _bind(bind: Callable[..., None], name: str, array: Array) -> None:
    # `array.ctypes` would take longer than the binding.
    bind(name, "cpu", 0, array.dtype, array.shape, array.__array_interface__["data"][0])
