"""The numpy engine against a plain float64 Llama written out here, and the rules of slots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shard import Shard, whole
from engines.activations import rounded
from engines.engine import MAX_SLOTS, NO_LOGITS, Chunk, EngineError, FloatArray
from engines.numpy.engine import NumpyEngine
from engines.numpy.kv_cache import KVCache
from engines.sampling import sample
from models.config import ModelConfig
from models.weights import Weights, open_weights
from tests.support.engines import GREEDY, TINY_TOLERANCES, Ring, cut
from tests.support.models import write_tiny_gguf, write_tiny_llama

TINY = whole("tiny", 4)
PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie": False},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "one key head": {"kv_heads": 1},
    "no shared key heads": {"kv_heads": 4},
    "llama3 rope": {"rope_scaling": LLAMA3_SCALING},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shared_engine(tiny: Path) -> NumpyEngine:
    return loaded(tiny)


@pytest.fixture
def engine(shared_engine: NumpyEngine) -> NumpyEngine:
    for slot in range(8):
        shared_engine.release(slot)
    return shared_engine


def loaded(path: Path, shard: Shard = TINY) -> NumpyEngine:
    engine = NumpyEngine()
    engine.load(shard, path)
    return engine


def tokens(slot: int, position: int, ids: Sequence[int], wants_logits: bool = True) -> Chunk:
    return Chunk(slot, position, np.array(ids, np.int32), int(wants_logits))


def logits_of(engine: NumpyEngine, ids: Sequence[int], slot: int = 0) -> FloatArray:
    """(vocab,) after all ids in one chunk of a fresh slot."""
    engine.release(slot)
    return np.asarray(engine.forward([tokens(slot, 0, ids)])[0][0])


def all_logits_of(engine: NumpyEngine, ids: Sequence[int], slot: int) -> FloatArray:
    """(ids, vocab) after each id, in one chunk of a fresh slot."""
    engine.release(slot)
    return engine.forward([Chunk(slot, 0, np.array(ids, np.int32), len(ids))])[0]


# A Llama by the book: float64, one position after the other, one head after the other.


def by_the_book(weights: Weights, ids: Sequence[int]) -> np.ndarray:
    config = weights.config
    embedding = weights.tensor("model.embed_tokens.weight").astype(np.float64)
    rows = embedding[list(ids)]
    for layer in range(config.n_layers):
        rows = book_layer(weights, config, f"model.layers.{layer}", rows)
        rows = rounded(rows.astype(np.float32), config.dtype).astype(np.float64)
    last = book_norm(rows[-1:], weights.tensor("model.norm.weight"), config)[0]
    head = embedding if config.tie_word_embeddings else weights.tensor("lm_head.weight").astype(np.float64)
    return np.asarray(head @ last)


def book_layer(weights: Weights, config: ModelConfig, prefix: str, rows: np.ndarray) -> np.ndarray:
    normed = book_norm(rows, weights.tensor(f"{prefix}.input_layernorm.weight"), config)
    rows = rows + book_attention(weights, config, f"{prefix}.self_attn", normed)
    normed = book_norm(rows, weights.tensor(f"{prefix}.post_attention_layernorm.weight"), config)
    gate = book_linear(weights, f"{prefix}.mlp.gate_proj", normed)
    inner = gate / (1 + np.exp(-gate)) * book_linear(weights, f"{prefix}.mlp.up_proj", normed)
    return np.asarray(rows + book_linear(weights, f"{prefix}.mlp.down_proj", inner))


def book_attention(weights: Weights, config: ModelConfig, prefix: str, rows: np.ndarray) -> np.ndarray:
    size, group = config.head_dim, config.n_heads // config.n_kv_heads
    queries, keys, values = (book_linear(weights, f"{prefix}.{part}_proj", rows) for part in "qkv")
    mixed = np.zeros((len(rows), config.n_heads * size))
    for head in range(config.n_heads):
        own, shared = slice(head * size, (head + 1) * size), head // group
        theirs = slice(shared * size, (shared + 1) * size)
        turned = [book_turn(keys[place, theirs], place, config) for place in range(len(rows))]
        for place in range(len(rows)):
            query = book_turn(queries[place, own], place, config)
            weight = np.exp([query @ key / math.sqrt(size) for key in turned[: place + 1]])
            mixed[place, own] = weight / weight.sum() @ values[: place + 1, theirs]
    return book_linear(weights, f"{prefix}.o_proj", mixed)


def book_turn(head: np.ndarray, place: int, config: ModelConfig) -> np.ndarray:
    half = config.head_dim // 2
    planes = head[:half] + 1j * head[half:]
    angles = [place * book_frequency(config.rope_theta ** (-i / half), config.rope_scaling) for i in range(half)]
    planes = planes * np.exp(1j * np.array(angles))
    return np.concatenate((planes.real, planes.imag))


def book_frequency(plain: float, scaling: Mapping[str, Any] | None) -> float:
    if scaling is None:
        return plain
    if scaling["rope_type"] == "linear":
        return float(plain / scaling["factor"])
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    wavelength = 2 * math.pi / plain
    if wavelength < original / scaling["high_freq_factor"]:
        return plain
    if wavelength > original / scaling["low_freq_factor"]:
        return float(plain / factor)
    span = scaling["high_freq_factor"] - scaling["low_freq_factor"]
    smooth = (original / wavelength - scaling["low_freq_factor"]) / span
    return float((1 - smooth) * plain / factor + smooth * plain)


def book_norm(rows: np.ndarray, weight: np.ndarray, config: ModelConfig) -> np.ndarray:
    return np.asarray(rows / np.sqrt((rows**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight)


def book_linear(weights: Weights, name: str, rows: np.ndarray) -> np.ndarray:
    product = rows @ weights.tensor(f"{name}.weight").astype(np.float64).T
    return product + weights.tensor(f"{name}.bias") if f"{name}.bias" in weights.names() else product


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_a_llama_by_the_book(variant: str, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, **VARIANTS[variant])
    ids = PROMPT * 8  # past the wavelengths that the llama3 rule leaves alone
    with open_weights(path) as weights:
        expected = by_the_book(weights, ids)
        dtype = weights.config.dtype
    np.testing.assert_allclose(logits_of(loaded(path), ids), expected, atol=TINY_TOLERANCES[dtype])


def test_a_gguf_answers_the_same_bits_as_its_checkpoint(tiny: Path, tmp_path: Path) -> None:
    gguf = loaded(write_tiny_gguf(tmp_path / "tiny.gguf"))
    np.testing.assert_array_equal(logits_of(gguf, PROMPT), logits_of(loaded(tiny), PROMPT))


@settings(max_examples=40)
@given(st.sets(st.integers(1, len(PROMPT) - 1)))
def test_any_cut_of_a_prompt_into_chunks_gives_the_same_logits(shared_engine: NumpyEngine, cuts: set[int]) -> None:
    expected = logits_of(shared_engine, PROMPT)
    shared_engine.release(1)
    edges = [0, *sorted(cuts), len(PROMPT)]
    for begin, end in pairwise(edges):
        answer = shared_engine.forward([tokens(1, begin, PROMPT[begin:end], end == len(PROMPT))])[0]
        assert answer.size == (264 if end == len(PROMPT) else 0)
    np.testing.assert_allclose(answer[0], expected, atol=2e-5)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_a_ragged_batch_answers_as_its_chunks_would_alone(
    shared_engine: NumpyEngine, shares: list[tuple[int, int, int]]
) -> None:
    random = np.random.default_rng(len(shares))
    batch = []
    expected = []
    for slot, (held, rows, wanted) in enumerate(shares):
        ids = random.integers(0, 264, held + rows)
        wanted = min(rows, wanted)
        alone = all_logits_of(shared_engine, ids.tolist(), slot)[held + rows - wanted :]
        expected.append(alone if wanted else NO_LOGITS)
        shared_engine.truncate(slot, held)
        batch.append(Chunk(slot, held, ids[held:].astype(np.int32), wanted))
    for answer, alone in zip(shared_engine.forward(batch), expected, strict=True):
        assert answer.shape == alone.shape
        np.testing.assert_allclose(answer, alone, atol=2e-5)


def test_a_truncated_slot_goes_on_as_if_the_rest_had_never_been(engine: NumpyEngine) -> None:
    expected = logits_of(engine, [*PROMPT[:6], 42])
    engine.forward([tokens(1, 0, PROMPT)])
    engine.truncate(1, 6)
    np.testing.assert_allclose(engine.forward([tokens(1, 6, [42])])[0][0], expected, atol=2e-5)


def test_a_released_slot_starts_anew_at_zero(engine: NumpyEngine) -> None:
    expected = logits_of(engine, PROMPT)
    engine.forward([tokens(1, 0, [9, 8, 7])])
    engine.release(1)
    engine.release(1)
    np.testing.assert_array_equal(engine.forward([tokens(1, 0, PROMPT)])[0][0], expected)


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_chunk_that_does_not_continue_its_slot_is_loud_and_changes_nothing(
    engine: NumpyEngine, position: int
) -> None:
    engine.forward([tokens(0, 0, [1, 2, 3])])
    with pytest.raises(EngineError, match=f"holds 3 positions but a chunk came for position {position}"):
        engine.forward([tokens(1, 0, [5]), tokens(0, position, [4])])
    engine.forward([tokens(0, 3, [4]), tokens(1, 0, [5])])


def test_a_new_slot_must_start_at_position_zero(engine: NumpyEngine) -> None:
    with pytest.raises(EngineError, match="holds 0 positions"):
        engine.forward([tokens(6, 3, [1])])


def test_one_batch_holds_a_slot_once(engine: NumpyEngine) -> None:
    with pytest.raises(EngineError, match="twice in one batch"):
        engine.forward([tokens(0, 0, [1]), tokens(0, 1, [2])])


def test_the_context_has_an_end(engine: NumpyEngine) -> None:
    engine.forward([tokens(0, 0, [1] * 512, wants_logits=False)])
    with pytest.raises(EngineError, match=r"513 positions but the model's context ends at 512"):
        engine.forward([tokens(0, 512, [1])])


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (np.zeros((2, 64), np.float32), "wants token ids"),
        (np.zeros(0, np.int32), "wants token ids"),
        (np.array([264], np.int32), "outside the vocabulary of 264"),
        (np.array([-1], np.int32), "outside the vocabulary of 264"),
    ],
)
def test_inputs_that_do_not_fit_the_first_stage_are_refused(
    engine: NumpyEngine, inputs: np.ndarray, complaint: str
) -> None:
    with pytest.raises(EngineError, match=complaint):
        engine.forward([Chunk(0, 0, inputs)])


@pytest.mark.parametrize("inputs", [np.zeros((2, 63), np.float32), np.zeros((2, 64), np.int32)])
def test_inputs_that_do_not_fit_a_later_stage_are_refused(tiny: Path, inputs: np.ndarray) -> None:
    later = loaded(tiny, Shard("tiny", 2, 4, 4))
    with pytest.raises(EngineError, match=r"tiny\[2:4\] wants hidden states of shape \(rows, 64\)"):
        later.forward([Chunk(0, 0, inputs)])


def test_hidden_states_may_come_in_another_floating_format(tiny: Path) -> None:
    first, later = (loaded(tiny, shard) for shard in cut("tiny", 4, 2))
    hidden = first.forward([tokens(0, 0, PROMPT)])[0]
    assert hidden.shape == (len(PROMPT), 64)
    assert hidden.dtype == np.float32
    exact = later.forward([Chunk(0, 0, hidden, 1)])[0]
    halved = later.forward([Chunk(1, 0, hidden.astype(np.float16), 1)])[0]
    np.testing.assert_allclose(halved, exact, atol=2e-2)


def test_an_unknown_slot_cannot_be_truncated(engine: NumpyEngine) -> None:
    with pytest.raises(EngineError, match="slot 5 does not exist"):
        engine.truncate(5, 0)


def test_a_slot_cannot_be_truncated_past_its_end(engine: NumpyEngine) -> None:
    engine.forward([tokens(0, 0, [1, 2])])
    with pytest.raises(EngineError, match="slot 0 holds 2 positions"):
        engine.truncate(0, 3)


def test_an_engine_loads_once(engine: NumpyEngine, tiny: Path) -> None:
    with pytest.raises(EngineError, match=r"already holds tiny\[0:4\]"):
        engine.load(TINY, tiny)


def test_a_shard_cut_for_another_model_is_refused(tiny: Path) -> None:
    with pytest.raises(EngineError, match="cut for 30 layers but the weights have 4"):
        loaded(tiny, whole("other", 30))


def test_an_engine_without_a_shard_says_so(tiny: Path) -> None:
    engine = loaded(tiny)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="holds no shard"):
        engine.forward([tokens(0, 0, [1])])


def test_an_empty_batch_is_answered_with_nothing(engine: NumpyEngine) -> None:
    assert engine.forward([]) == []


def test_decoding_continues_what_prefill_began(engine: NumpyEngine) -> None:
    made = Ring([engine]).generate(PROMPT, 12)
    for count in range(12):
        again = logits_of(engine, PROMPT + made.tokens[:count])
        assert sample(again, GREEDY, 0) == made.tokens[count]


@pytest.mark.parametrize("logits", [-1, 3])
def test_more_logits_than_a_chunk_has_rows_are_refused(engine: NumpyEngine, logits: int) -> None:
    with pytest.raises(EngineError, match="wants token ids"):
        engine.forward([Chunk(0, 0, np.array([1, 2], np.int32), logits)])


def test_an_engine_holds_no_more_slots_than_it_says(tiny: Path) -> None:
    engine = loaded(tiny)
    engine.forward([tokens(slot, 0, [1]) for slot in range(MAX_SLOTS)])
    with pytest.raises(EngineError, match="close a session first"):
        engine.forward([tokens(MAX_SLOTS, 0, [1])])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_the_cache_gives_back_what_was_stored(rows: list[int]) -> None:
    cache, random = KVCache(2, 3, sum(rows), 4), np.random.default_rng(0)
    stored = random.standard_normal((sum(rows), 3, 4), np.float32)
    position = 0
    for count in rows:
        part = stored[position : position + count]
        for layer in (0, 1):
            keys, values = cache.store(layer, position, part, -part)
        position += count
        np.testing.assert_array_equal(keys, stored[:position].swapaxes(0, 1))
        np.testing.assert_array_equal(values, -keys)


def test_a_few_rows_have_the_bits_that_each_has_alone(engine: NumpyEngine) -> None:
    ids = PROMPT[: NumpyEngine.exact_rows]
    for slot in (0, 1):
        engine.forward([tokens(slot, 0, PROMPT)])
    begin = len(PROMPT)
    one_by_one = [engine.forward([tokens(0, begin + at, [token])])[0] for at, token in enumerate(ids)]
    (at_once,) = engine.forward([Chunk(1, begin, np.array(ids, np.int32), len(ids))])
    np.testing.assert_array_equal(at_once, np.concatenate(one_by_one))
