"""One shard in an ONNX Runtime session. Single rows of many slots are one run, a longer chunk is a run of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import onnxruntime

from cluster.shard import Shard
from engines.engine import NO_LOGITS, Array, Chunk, FloatArray
from engines.onnx.graph import Graph
from engines.onnx.lanes import Lane, Lanes
from engines.rope import frequencies
from models.blocks import QuantisedBlocks
from models.config import ModelConfig


class OnnxStage:
    """A graph with the lanes that it reads and writes in place."""

    def __init__(
        self, config: ModelConfig, shard: Shard, graph: Graph, embedding: FloatArray | QuantisedBlocks | None
    ) -> None:
        self._config = config
        self._shard = shard
        self._session = session(graph)
        self._embedding = embedding
        self._frequencies = frequencies(config)
        self._lanes = Lanes(len(shard.layers), config.n_kv_heads, config.head_dim)
        self._bound: Array | None = None
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self._config

    @property
    def shard(self) -> Shard:
        """The layers that this stage owns."""
        return self._shard

    def cache(self) -> Lane:
        """A free lane for one slot."""
        return self._lanes.take()

    def truncate(self, cache: Lane, position: int) -> None:
        """Nothing to do: what lies behind a slot's end is written over before it is read."""

    def forward(self, batch: Sequence[Chunk], caches: Sequence[Lane]) -> list[FloatArray]:
        """Each chunk's hidden states (rows, hidden), or on the last stage its logits (vocab,).

        The attention kernel takes several lanes at one row each, or one lane: so chunks of more rows run alone.
        From some thirty rows on that costs nothing, as a product then costs by the row.
        """
        self._lanes.reserve(max(chunk.position + chunk.rows for chunk in batch))
        answers = [NO_LOGITS] * len(batch)
        single = [index for index, chunk in enumerate(batch) if chunk.rows == 1]
        longer = [[index] for index, chunk in enumerate(batch) if chunk.rows > 1]
        for group in [single, *longer] if single else longer:
            run = self._run([batch[index] for index in group], [caches[index].index for index in group])
            for index, answer in zip(group, run, strict=True):
                answers[index] = answer
        return answers

    def _run(self, chunks: Sequence[Chunk], lanes: Sequence[int]) -> list[FloatArray]:
        """Chunks of one row each, or one chunk, over all lanes from the first to the last of theirs.

        A lane in between that has no chunk gets some row at its position 0, which is put back afterwards.
        """
        first, end = min(lanes), max(lanes) + 1
        idle = [lane for lane in range(first, end) if lane not in lanes]
        kept = self._lanes.memory[:, :, idle, :, 0].copy()
        answer = self._compute(chunks, np.array(lanes) - first, (first, end))
        self._lanes.memory[:, :, idle, :, 0] = kept
        return self._split(chunks, answer)

    def _compute(self, chunks: Sequence[Chunk], places: Array, span: tuple[int, int]) -> FloatArray:
        width, steps = span[1] - span[0], chunks[0].rows
        rows = self._enter(np.concatenate([chunk.inputs for chunk in chunks]))
        grid = np.zeros((width, steps), np.int64)
        grid[places] = np.arange(len(rows)).reshape(-1, steps)
        ends = np.zeros(width, np.int32)
        ends[places] = [chunk.position + steps - 1 for chunk in chunks]
        inputs = {
            "hidden": rows,
            "grid": grid,
            "order": (places[:, None] * steps + np.arange(steps)).reshape(-1),
            "ends": ends,
            "longest": ends.max(keepdims=True) + np.int32(1),
        }
        if not self._shard.is_last:
            return self._execute(span, inputs, np.empty_like(rows))
        inputs["wanted"] = np.flatnonzero([chunk.wants_logits for chunk in chunks]) * steps + steps - 1
        return self._execute(span, inputs, np.empty((len(inputs["wanted"]), self._config.vocab_size), np.float32))

    def _execute(self, span: tuple[int, int], inputs: dict[str, Array], answer: FloatArray) -> FloatArray:
        binding = self._binding(span)
        for name, array in inputs.items():
            _bind(binding.bind_input, name, array)
        _bind(binding.bind_output, "answer", answer)
        self._session.run_with_iobinding(binding)
        return answer

    def _binding(self, span: tuple[int, int]) -> onnxruntime.IOBinding:
        """The memory of these lanes and the rope's turns, bound once and used until the lanes move."""
        if self._bound is not self._lanes.memory:
            self._bound = self._lanes.memory
            self._bindings.clear()
            angles = np.arange(self._lanes.capacity, dtype=np.float32)[:, None] * self._frequencies
            self._turns = {"cosines": np.cos(angles), "sines": np.sin(angles)}
        if span not in self._bindings:
            self._bindings[span] = self._bind_lanes(slice(*span))
        return self._bindings[span]

    def _bind_lanes(self, span: slice) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, array in self._turns.items():
            _bind(binding.bind_input, name, array)
        for index, layer in enumerate(self._lanes.memory):
            for name, memory in (("keys", layer[0, span]), ("values", layer[1, span])):
                _bind(binding.bind_input, f"{name}_{index}", memory)
                _bind(binding.bind_output, f"new_{name}_{index}", memory)
        return binding

    def _enter(self, inputs: Array) -> FloatArray:
        if self._embedding is None:
            return inputs.astype(np.float32)
        if isinstance(self._embedding, QuantisedBlocks):
            return self._embedding.rows(inputs)
        return np.asarray(self._embedding[inputs])

    def _split(self, chunks: Sequence[Chunk], answer: FloatArray) -> list[FloatArray]:
        if not self._shard.is_last:
            return list(answer.reshape(len(chunks), -1, self._config.hidden_size))
        logits = iter(answer)
        return [next(logits) if chunk.wants_logits else NO_LOGITS for chunk in chunks]


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


def _bind(bind: object, name: str, array: Array) -> None:
    assert callable(bind)
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
