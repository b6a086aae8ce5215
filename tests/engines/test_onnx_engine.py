"""What is ONNX Runtime's own: lanes, precision, threads. Its answers are checked in `test_engines_agree`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shard import whole
from engines.engine import NO_LOGITS, Chunk, EngineError, FloatArray
from engines.numpy.engine import NumpyEngine
from engines.onnx.batch_layout import lay_out
from engines.onnx.engine import OnnxEngine
from engines.onnx.graph import Graph
from engines.onnx.kv_pool import KvPool
from engines.onnx.linear import floats, integers, linear
from engines.onnx.shard_model import session
from engines.precision import PRECISIONS, Precision
from models.quantized import UNPACK, QuantizedMatrix
from models.tokenizer import Tokenizer
from models.weights import Weights, open_weights
from tests.support.engines import Ring, cut
from tests.support.models import HALVES, default_model_path, write_tiny_gguf, write_tiny_llama

PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
TINY = whole("tiny", 4)
SLOTS = 4
TOLERANCE = 2e-5
QUESTIONS = ("What is the capital of France?", "List five animals that live in the desert.")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pair(tiny: Path) -> tuple[OnnxEngine, NumpyEngine]:
    ours, reference = OnnxEngine("exact"), NumpyEngine()
    ours.load(TINY, tiny)
    reference.load(TINY, tiny)
    return ours, reference


def tokens(slot: int, position: int, ids: Sequence[int], wants_logits: bool = True) -> Chunk:
    return Chunk(slot, position, np.array(ids, np.int32), int(wants_logits))


rounds = st.lists(
    st.dictionaries(
        st.integers(0, SLOTS - 1),
        st.tuples(st.sampled_from([1, 1, 1, 2, 5]), st.integers(0, 249), st.booleans(), st.booleans()),
        min_size=1,
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(rounds)
def test_whichever_slots_meet_in_a_batch_each_is_answered_as_if_alone(
    pair: tuple[OnnxEngine, NumpyEngine], rounds: list[dict[int, tuple[int, int, bool, bool]]]
) -> None:
    lengths = dict.fromkeys(range(SLOTS), 0)
    for round_ in rounds:
        batch = []
        for slot, (rows, token, wants, restarts) in round_.items():
            if restarts:
                lengths[slot] = 0
                for engine in pair:
                    engine.release(slot)
            batch.append(tokens(slot, lengths[slot], [token + row for row in range(rows)], wants))
            lengths[slot] += rows
        for ours, theirs in zip(*(engine.forward(batch) for engine in pair), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    for slot in range(SLOTS):
        for engine in pair:
            engine.release(slot)


def test_a_lane_is_as_long_as_the_context(pair: tuple[OnnxEngine, NumpyEngine]) -> None:
    ids = (PROMPT * 50)[:512]
    for engine in pair:
        engine.forward([tokens(0, 0, PROMPT, False), tokens(1, 0, ids[:-4], False)])
    batch = [tokens(0, len(PROMPT), [9]), tokens(1, 508, ids[-4:])]
    for ours, theirs in zip(*(engine.forward(batch) for engine in pair), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    for engine in pair:
        engine.release(0)
        engine.release(1)


def test_a_chunk_that_wants_no_logits_gets_none(pair: tuple[OnnxEngine, NumpyEngine]) -> None:
    engine = pair[0]
    assert engine.forward([tokens(0, 0, PROMPT, False)])[0] is NO_LOGITS
    assert engine.forward([tokens(0, len(PROMPT), [1], False)])[0] is NO_LOGITS
    engine.release(0)


def test_heads_of_an_odd_size_are_refused_with_another_engine_named(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, heads=8, kv_heads=2)
    with pytest.raises(EngineError, match="heads of a multiple of 16, not 8; try numpy"):
        OnnxEngine().load(TINY, path)


class TestGrid:
    @given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from([1, 3]))
    def test_every_row_stands_where_its_chunks_lane_says(self, lanes: list[int], chunks: int, steps: int) -> None:
        used = lanes[:chunks]
        grid = lay_out(tuple(used), steps)
        for chunk, lane in enumerate(used):
            for step in range(steps):
                row = chunk * steps + step
                assert grid.rows[lane - grid.first, step] == row
                assert grid.order[row].tolist() == [lane - grid.first, step]
        assert sorted([*used, *grid.idle]) == list(range(grid.first, grid.end))


class TestLanes:
    def test_the_first_free_lane_is_taken(self) -> None:
        lanes = KvPool(1, 1, 16, 4)
        assert [lanes.take() for _ in range(3)] == [0, 1, 2]
        lanes.give_back(1)
        assert [lanes.take() for _ in range(2)] == [1, 3]

    def test_a_lane_given_back_leaves_the_others_alone(self) -> None:
        lanes = KvPool(2, 3, 100, 4)  # lanes of 4800 bytes: none begins where a page does
        for lane in range(3):
            lanes.array[:, :, lanes.take()] = lane + 1
        lanes.give_back(1)
        assert (lanes.array[:, :, 0] == 1).all()
        assert (lanes.array[:, :, 2] == 3).all()


class TestSession:
    def test_the_runtime_owns_a_copy_of_the_weights_it_was_given(self) -> None:
        graph = Graph()
        rows = graph.input("rows", np.float32, ("rows", 64))
        matrix, added = np.eye(64, dtype=np.float32), np.ones(64, np.float32)
        product = graph.node("Gemm", rows, graph.weight(matrix), transB=1)
        graph.nodes("Add", product, graph.weight(added), outputs=[graph.output("answer", ("rows", 64))])
        opened = session(graph)
        for array in graph.weights.values():
            array[...] = 0
        given = np.arange(64, dtype=np.float32)[None]
        np.testing.assert_array_equal(opened.run(["answer"], {"rows": given})[0], given + 1)

    def test_a_matrix_too_large_for_one_weight_is_several(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engines.onnx.linear.MOST_BYTES", 1000)
        graph = Graph()
        matrix = np.random.default_rng(1).random((51, 16), np.float32)
        answer = floats(graph, graph.input("rows", np.float32, ("rows", 16)), matrix)
        graph.nodes("Identity", answer, outputs=[graph.output("answer", ("rows", 51))])
        rows = np.random.default_rng(2).random((3, 16), np.float32)
        found = session(graph).run(["answer"], {"rows": rows})[0]
        assert len(graph.weights) == 4
        np.testing.assert_allclose(found, rows @ matrix.T, rtol=1e-5)

    @pytest.mark.parametrize(("asked", "threads"), [("3", 3), ("", 0), ("2,1", 0)])
    def test_threads_follow_the_environment(self, asked: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        graph = Graph()
        graph.nodes("Neg", graph.input("rows", np.float32, (1,)), outputs=[graph.output("answer", (1,))])
        assert session(graph).get_session_options().intra_op_num_threads == threads


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_split_model_gives_the_bits_of_the_unsplit(precision: Precision, layer: int, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quantisation="Q4_1")
    unsplit, split = (onnx_ring(precision, path, *cuts).generate(PROMPT, 16) for cuts in ((), (layer,)))
    np.testing.assert_array_equal(split.logits, unsplit.logits)


class TestFast:
    @pytest.mark.parametrize("quantisation", ["Q4_0", "Q4_1", "Q8_0"])
    def test_a_product_differs_from_the_float32_one_by_the_rounding_of_the_rows(
        self, quantisation: str, tmp_path: Path
    ) -> None:
        names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
        rows = np.random.default_rng(3).standard_normal((5, 64), np.float32)
        with open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", quantisation=quantisation)) as weights:
            answer = product(weights, rows, names)
            expected = rows @ np.concatenate([weights.tensor(f"{name}.weight") for name in names]).T
        error = np.linalg.norm(answer - expected) / np.linalg.norm(expected)
        assert 1e-4 < error < 0.01

    @pytest.mark.parametrize("kind", sorted(UNPACK), ids=str)
    def test_every_kind_of_block_is_multiplied_as_its_tensor(self, kind: GGMLQuantizationType) -> None:
        blocks = random_blocks(kind)
        rows = np.random.default_rng(3).standard_normal((5, 256), np.float32)
        graph = Graph()
        answer = integers(graph, graph.input("rows", np.float32, ("rows", 256)), blocks)
        graph.nodes("Identity", answer, outputs=[graph.output("answer", ("rows", "outputs"))])
        found = session(graph).run(["answer"], {"rows": rows})[0]
        expected = rows @ blocks.rows(slice(None)).T
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.01

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("columns", [96, 128, 160])
    def test_a_row_of_any_number_of_blocks_is_multiplied(self, columns: int, bits: int) -> None:
        random = np.random.default_rng(7)
        codes = random.integers(0, 1 << bits, (24, columns), np.uint8)
        scales, minimums = random.standard_normal((2, 24, columns // 32), np.float32) / 10
        blocks = QuantizedMatrix(codes, scales, minimums, bits, None)
        rows = random.standard_normal((5, columns), np.float32)
        graph = Graph()
        answer = integers(graph, graph.input("rows", np.float32, ("rows", columns)), blocks)
        graph.nodes("Identity", answer, outputs=[graph.output("answer", ("rows", "outputs"))])
        found = session(graph).run(["answer"], {"rows": rows})[0]
        expected = rows @ blocks.rows(slice(None)).T
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.01

    def test_a_file_without_blocks_is_as_in_exact(self, tiny: Path, pair: tuple[OnnxEngine, NumpyEngine]) -> None:
        fast = OnnxEngine("fast")
        fast.load(TINY, tiny)
        ours, theirs = Ring([fast]).generate(PROMPT, 8), Ring([pair[0]]).generate(PROMPT, 8)
        np.testing.assert_array_equal(ours.logits, theirs.logits)

    def test_matrices_stored_in_different_ways_stand_side_by_side(self, tmp_path: Path) -> None:
        names = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
        rows = np.random.default_rng(3).standard_normal((5, 64), np.float32)
        with ThreeFiles(tmp_path) as weights:
            answer = product(weights, rows, names)
            expected = rows @ np.concatenate([weights.tensor(f"{name}.weight") for name in names]).T
        assert np.linalg.norm(answer - expected) / np.linalg.norm(expected) < 0.01
        np.testing.assert_allclose(answer[:, 96:], expected[:, 96:], atol=TOLERANCE)

    @pytest.mark.timeout(300)
    def test_the_default_model_means_the_same(self) -> None:
        """Along the exact engine's own answers: measured 96 % the same choice, divergence 0.003 nats a token."""
        exact, fast = OnnxEngine("exact"), OnnxEngine("fast")
        for engine in (exact, fast):
            engine.load(whole("smollm2-135m", 30), default_model_path())
        divergences, agreements = [], []
        for prompt in default_prompts():
            reference = Ring([exact]).generate(prompt, 48)
            for expected, answer in zip(reference.logits, followed(fast, prompt, reference.tokens), strict=True):
                divergences.append(divergence(expected, answer))
                agreements.append(expected.argmax() == answer.argmax())
        assert np.mean(divergences) < 0.01
        assert np.mean(agreements) > 0.9


def onnx_ring(precision: Precision, path: Path, *cuts: int) -> Ring:
    stages = []
    for shard in cut("tiny", TINY.n_layers, *cuts):
        engine = OnnxEngine(precision)
        engine.load(shard, path)
        stages.append(engine)
    return Ring(stages)


def random_blocks(kind: GGMLQuantizationType) -> QuantizedMatrix:
    """24 rows of 256 weights, from bytes that are scales of a like size and any codes."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(5).integers(0, 256, (24, 256 // block, block_bytes), np.uint8)
    for start in HALVES[kind]:
        packed[..., start + 1] = packed[..., start + 1] & 3 | 0x28
    return UNPACK[kind](packed.reshape(-1), 24)


class ThreeFiles:
    """Weights as some files mix them: q has four bits, k eight, and v none but floats."""

    def __init__(self, folder: Path) -> None:
        kinds = {"q_proj": "Q4_1", "k_proj": "Q8_0", "v_proj": "F32"}
        self._parts = {
            part: open_weights(write_tiny_gguf(folder / f"{kind}.gguf", quantisation=kind))
            for part, kind in kinds.items()
        }
        self.config = self._parts["q_proj"].config
        self.nbytes = self._parts["q_proj"].nbytes

    def names(self) -> frozenset[str]:
        return self._parts["q_proj"].names()

    def tensor(self, name: str) -> np.ndarray:
        return self._of(name).tensor(name)

    def blocks(self, name: str) -> QuantizedMatrix | None:
        return self._of(name).blocks(name)

    def _of(self, name: str) -> Weights:
        return self._parts[name.split(".")[-2]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._parts.values():
            part.__exit__(kind, error, trace)


def product(weights: Weights, rows: FloatArray, names: Sequence[str]) -> FloatArray:
    """The fast product of (rows, 64) with the named matrices."""
    graph = Graph()
    answer = linear(graph, graph.input("rows", np.float32, ("rows", 64)), weights, "fast", *names)
    graph.nodes("Identity", answer, outputs=[graph.output("answer", ("rows", "outputs"))])
    return np.asarray(session(graph).run(["answer"], {"rows": rows})[0])


def default_prompts() -> list[list[int]]:
    tokenizer = Tokenizer.load(default_model_path().parent)
    assert tokenizer.chat_template is not None
    render = tokenizer.chat_template.render
    return [tokenizer.encode(render([{"role": "user", "content": question}])) for question in QUESTIONS]


def followed(engine: OnnxEngine, prompt: list[int], answer: list[int]) -> Iterator[FloatArray]:
    """The engine's logits at each token of another's answer."""
    ring, position, pending = Ring([engine]), 0, prompt
    for token in answer:
        yield ring.step(0, position, pending)
        position, pending = position + len(pending), [token]
    engine.release(0)


def divergence(expected: FloatArray, answer: FloatArray) -> float:
    """Kullback and Leibler's, in nats."""
    ours, theirs = log_softmax(expected), log_softmax(answer)
    return float((np.exp(ours) * (ours - theirs)).sum())


def log_softmax(logits: FloatArray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_a_chunk_have_the_bits_that_each_has_alone(precision: Precision) -> None:
    engine = OnnxEngine(precision)
    engine.load(whole("default", 30), default_model_path())
    ids = np.random.default_rng(3).integers(1000, 40000, 49).astype(np.int32)
    for slot in (0, 1):
        engine.forward([Chunk(slot, 0, ids[:40])])
    one_by_one = [engine.forward([Chunk(0, at, ids[at : at + 1], 1)])[0] for at in range(40, 49)]
    (at_once,) = engine.forward([Chunk(1, 40, ids[40:], 9)])
    np.testing.assert_array_equal(at_once, np.concatenate(one_by_one))
