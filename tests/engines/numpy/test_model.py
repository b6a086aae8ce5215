"""The numpy engine against a plain float64 Llama written out here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shard import whole
from engines.activations import rounded
from engines.engine import NO_LOGITS, Chunk, FloatArray
from engines.numpy.engine import NumpyEngine
from engines.sampler import sample
from models.architecture import Architecture, Linear, Llama3, Rope
from models.weights.reader import Weights, open_weights
from tests.support.engines import GREEDY, PROMPT, TINY_TOLERANCES, Ring, cut, numpy_engine, tokens
from tests.support.models import VARIANTS, write_tiny_gguf, write_tiny_llama

TINY = whole("tiny", 4)
NUMPY_VARIANTS = {"tied": {}, "one key head": {"kv_heads": 1}, "unshared key heads": {"kv_heads": 4}, **VARIANTS}


def logits_of(engine: NumpyEngine, ids: Sequence[int], slot: int = 0) -> FloatArray:
    """Return the logits (vocab,) after all ids, in one chunk of a new slot."""
    engine.release(slot)
    return np.asarray(engine.forward([tokens(slot, 0, ids)])[0][0])


def all_logits_of(engine: NumpyEngine, ids: Sequence[int], slot: int) -> FloatArray:
    """Return the logits (ids, vocab) after each id, in one chunk of a new slot."""
    engine.release(slot)
    return engine.forward([Chunk(slot, 0, np.array(ids, np.int32), len(ids))])[0]


# A textbook Llama: float64, one position after another, one head after another.


def textbook_logits(weights: Weights, ids: Sequence[int]) -> np.ndarray:
    architecture = weights.architecture
    embedding = weights.tensor("model.embed_tokens.weight").astype(np.float64)
    rows = embedding[list(ids)]
    for layer in range(architecture.n_layers):
        rows = textbook_layer(weights, architecture, f"model.layers.{layer}", rows)
        rows = rounded(rows.astype(np.float32), architecture.dtype).astype(np.float64)
    last = textbook_norm(rows[-1:], weights.tensor("model.norm.weight"), architecture)[0]
    head = embedding if architecture.tied_embedding else weights.tensor("lm_head.weight").astype(np.float64)
    return np.asarray(head @ last)


def textbook_layer(weights: Weights, architecture: Architecture, prefix: str, rows: np.ndarray) -> np.ndarray:
    normed = textbook_norm(rows, weights.tensor(f"{prefix}.input_layernorm.weight"), architecture)
    rows = rows + textbook_attention(weights, architecture, f"{prefix}.self_attn", normed)
    normed = textbook_norm(rows, weights.tensor(f"{prefix}.post_attention_layernorm.weight"), architecture)
    gate = textbook_linear(weights, f"{prefix}.mlp.gate_proj", normed)
    inner = gate / (1 + np.exp(-gate)) * textbook_linear(weights, f"{prefix}.mlp.up_proj", normed)
    return np.asarray(rows + textbook_linear(weights, f"{prefix}.mlp.down_proj", inner))


def textbook_attention(weights: Weights, architecture: Architecture, prefix: str, rows: np.ndarray) -> np.ndarray:
    spec = architecture.heads
    size, group = spec.head_dim, spec.heads // spec.kv_heads
    queries, keys, values = (textbook_linear(weights, f"{prefix}.{part}_proj", rows) for part in "qkv")
    mixed = np.zeros((len(rows), spec.heads * size))
    for head in range(spec.heads):
        own, shared = slice(head * size, (head + 1) * size), head // group
        theirs = slice(shared * size, (shared + 1) * size)
        rotated = [textbook_rotation(keys[position, theirs], position, spec.rope) for position in range(len(rows))]
        for position in range(len(rows)):
            query = textbook_rotation(queries[position, own], position, spec.rope)
            weight = np.exp([query @ key / math.sqrt(size) for key in rotated[: position + 1]])
            mixed[position, own] = weight / weight.sum() @ values[: position + 1, theirs]
    return textbook_linear(weights, f"{prefix}.o_proj", mixed)


def textbook_rotation(head: np.ndarray, position: int, rope: Rope | None) -> np.ndarray:
    assert rope is not None
    half = len(head) // 2
    planes = head[:half] + 1j * head[half:]
    angles = [position * textbook_frequency(rope.theta ** (-i / half), rope) for i in range(half)]
    planes = planes * np.exp(1j * np.array(angles))
    return np.concatenate((planes.real, planes.imag))


def textbook_frequency(plain: float, rope: Rope) -> float:
    scaling = rope.scaling
    if scaling is None:
        return plain
    if isinstance(scaling, Linear):
        return plain / scaling.factor
    assert isinstance(scaling, Llama3)
    wavelength = 2 * math.pi / plain
    if wavelength < scaling.original_context / scaling.high_freq_factor:
        return plain
    if wavelength > scaling.original_context / scaling.low_freq_factor:
        return plain / scaling.factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_context / wavelength - scaling.low_freq_factor) / span
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def textbook_norm(rows: np.ndarray, weight: np.ndarray, architecture: Architecture) -> np.ndarray:
    return np.asarray(rows / np.sqrt((rows**2).mean(-1, keepdims=True) + architecture.norm_eps) * weight)


def textbook_linear(weights: Weights, name: str, rows: np.ndarray) -> np.ndarray:
    product = rows @ weights.tensor(f"{name}.weight").astype(np.float64).T
    return product + weights.tensor(f"{name}.bias") if f"{name}.bias" in weights.names() else product


@pytest.mark.parametrize("variant", NUMPY_VARIANTS)
def test_logits_match_a_textbook_llama(variant: str, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, **NUMPY_VARIANTS[variant])
    ids = PROMPT * 8  # past the wavelengths that the llama3 rule keeps
    weights = open_weights(path)
    expected = textbook_logits(weights, ids)
    dtype = weights.architecture.dtype
    np.testing.assert_allclose(logits_of(numpy_engine(path), ids), expected, atol=TINY_TOLERANCES[dtype])


def test_gguf_gives_the_bits_of_its_checkpoint(tiny: Path, tmp_path: Path) -> None:
    gguf = numpy_engine(write_tiny_gguf(tmp_path / "tiny.gguf"))
    np.testing.assert_array_equal(logits_of(gguf, PROMPT), logits_of(numpy_engine(tiny), PROMPT))


@settings(max_examples=40)
@given(st.sets(st.integers(1, len(PROMPT) - 1)))
def test_chunking_a_prompt_keeps_its_logits(shared_engine: NumpyEngine, cuts: set[int]) -> None:
    expected = logits_of(shared_engine, PROMPT)
    shared_engine.release(1)
    edges = [0, *sorted(cuts), len(PROMPT)]
    for begin, end in pairwise(edges):
        output = shared_engine.forward([tokens(1, begin, PROMPT[begin:end], end == len(PROMPT))])[0]
        assert output.size == (264 if end == len(PROMPT) else 0)
    np.testing.assert_allclose(output[0], expected, atol=2e-5)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_ragged_batch_matches_its_chunks_alone(shared_engine: NumpyEngine, shares: list[tuple[int, int, int]]) -> None:
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
    for output, alone in zip(shared_engine.forward(batch), expected, strict=True):
        assert output.shape == alone.shape
        np.testing.assert_allclose(output, alone, atol=2e-5)


def test_truncated_slot_continues_like_a_shorter_one(engine: NumpyEngine) -> None:
    expected = logits_of(engine, [*PROMPT[:6], 42])
    engine.forward([tokens(1, 0, PROMPT)])
    engine.truncate(1, 6)
    np.testing.assert_allclose(engine.forward([tokens(1, 6, [42])])[0][0], expected, atol=2e-5)


def test_released_slot_starts_again_at_zero(engine: NumpyEngine) -> None:
    expected = logits_of(engine, PROMPT)
    engine.forward([tokens(1, 0, [9, 8, 7])])
    engine.release(1)
    engine.release(1)
    np.testing.assert_array_equal(engine.forward([tokens(1, 0, PROMPT)])[0][0], expected)


def test_float16_hidden_states_are_accepted(tiny: Path) -> None:
    first, later = (numpy_engine(tiny, shard) for shard in cut("tiny", 4, 2))
    hidden = first.forward([tokens(0, 0, PROMPT)])[0]
    assert hidden.shape == (len(PROMPT), 64)
    assert hidden.dtype == np.float32
    exact = later.forward([Chunk(0, 0, hidden, 1)])[0]
    halved = later.forward([Chunk(1, 0, hidden.astype(np.float16), 1)])[0]
    np.testing.assert_allclose(halved, exact, atol=2e-2)


def test_decoding_matches_prefill(engine: NumpyEngine) -> None:
    made = Ring([engine]).generate(PROMPT, 12)
    for count in range(12):
        again = logits_of(engine, PROMPT + made.tokens[:count])
        assert sample(again, GREEDY, 0) == made.tokens[count]


def test_few_rows_have_the_same_bits_alone(engine: NumpyEngine) -> None:
    ids = PROMPT[: NumpyEngine.exact_rows]
    for slot in (0, 1):
        engine.forward([tokens(slot, 0, PROMPT)])
    begin = len(PROMPT)
    one_by_one = [engine.forward([tokens(0, begin + at, [token])])[0] for at, token in enumerate(ids)]
    (at_once,) = engine.forward([Chunk(1, begin, np.array(ids, np.int32), len(ids))])
    np.testing.assert_array_equal(at_once, np.concatenate(one_by_one))
