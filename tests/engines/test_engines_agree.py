"""Every engine keeps the contract and matches the reference, on tiny models.

numpy is the reference, which `numpy/test_llama.py` checks against a textbook Llama. The others run in child processes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.shard import whole
from engines.engine import Chunk
from engines.errors import EngineError
from engines.numpy.engine import NumpyEngine
from engines.settings import CHOSEN
from tests.support.engines import (
    PROMPT,
    TINY_TOLERANCES,
    EngineProcess,
    HostedEngine,
    Ring,
    largest_difference,
    numpy_engine,
    tokens,
)
from tests.support.models import VARIANTS, write_tiny_gguf, write_tiny_llama

OTHERS = ("mlx", "tinygrad", "onnx")
TINY = whole("tiny", 4)
TINY_TOLERANCE = TINY_TOLERANCES["float32"]


@pytest.fixture(scope="module", params=CHOSEN)
def engine(request: pytest.FixtureRequest, process: EngineProcess, tiny: Path) -> HostedEngine:
    return process.load(request.param, TINY, tiny)


@pytest.fixture(scope="module")
def reference(tiny: Path) -> NumpyEngine:
    return numpy_engine(tiny)


def test_greedy_tokens_and_logits_match_the_reference(engine: HostedEngine, reference: NumpyEngine) -> None:
    ours, theirs = Ring([engine]).generate(PROMPT, 32), Ring([reference]).generate(PROMPT, 32)
    assert ours.tokens == theirs.tokens
    assert largest_difference(ours, theirs) < TINY_TOLERANCE


def test_ragged_batch_matches_the_reference(engine: HostedEngine, reference: NumpyEngine) -> None:
    batch = [tokens(1, 0, PROMPT), tokens(2, 0, [8]), tokens(3, 0, PROMPT[:3], wants_logits=False)]
    later = [tokens(2, 1, [9, 10]), Chunk(3, 3, np.array(PROMPT[3:], np.int32), logits=5)]
    for chunks in (batch, later):
        for ours, theirs in zip(engine.forward(chunks), reference.forward(chunks), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=TINY_TOLERANCE)
    for slot in (1, 2, 3):
        engine.release(slot)
        reference.release(slot)


def test_truncated_slot_matches_the_reference(engine: HostedEngine, reference: NumpyEngine) -> None:
    engine.forward([tokens(4, 0, PROMPT)])
    engine.truncate(4, 5)
    output = engine.forward([tokens(4, 5, [77, 78])])[0]
    expected = reference.forward([tokens(4, 0, [*PROMPT[:5], 77, 78])])[0]
    engine.release(4)
    reference.release(4)
    np.testing.assert_allclose(output, expected, atol=TINY_TOLERANCE)


def test_restored_slot_continues_with_the_same_bits(engine: HostedEngine) -> None:
    """The rest runs in the same chunks: other chunks may change the last bits of a float32 product."""
    ids = (PROMPT * 10)[:100]
    engine.forward([tokens(7, 0, ids[:70], wants_logits=False)])
    blocks = [engine.save(7, start, start + 32) for start in (0, 32)]
    assert [block.nbytes for block in blocks] == [32 * engine.position_bytes()] * 2
    engine.truncate(7, 64)
    for block in blocks:
        engine.restore(8, block)
    for begin, end in ((64, 90), (90, 91), (91, 100)):
        original, continued = (
            engine.forward([tokens(7, begin, ids[begin:end])]),
            engine.forward([tokens(8, begin, ids[begin:end])]),
        )
        np.testing.assert_array_equal(continued[0], original[0])
    for slot in (7, 8):
        engine.release(slot)


def test_copy_for_another_position_is_rejected(engine: HostedEngine) -> None:
    engine.forward([tokens(7, 0, PROMPT)])
    second = engine.save(7, 4, 8)
    with pytest.raises(EngineError, match="slot 8 holds 0 positions and takes no copy of 4 to 8"):
        engine.restore(8, second)
    with pytest.raises(EngineError, match="slot 7 holds 11 positions, so not 8 to 12"):
        engine.save(7, 8, 12)
    engine.release(7)


def test_long_prompt_in_uneven_chunks_matches_the_reference(engine: HostedEngine, reference: NumpyEngine) -> None:
    ids = (PROMPT * 40)[:301]
    engine.forward([tokens(5, 0, ids[:270], wants_logits=False)])
    output = engine.forward([tokens(5, 270, ids[270:])])[0]
    expected = reference.forward([tokens(5, 0, ids)])[0]
    engine.release(5)
    reference.release(5)
    np.testing.assert_allclose(output, expected, atol=TINY_TOLERANCE)


def test_position_gap_raises_engine_error(engine: HostedEngine) -> None:
    engine.forward([tokens(6, 0, [1, 2, 3])])
    with pytest.raises(EngineError, match="slot 6 holds 3 positions but a chunk came for position 4"):
        engine.forward([tokens(6, 4, [1])])
    engine.release(6)
    engine.release(6)
    with pytest.raises(EngineError, match="slot 6 does not exist"):
        engine.truncate(6, 0)


def test_chunk_beyond_the_context_is_rejected(engine: HostedEngine) -> None:
    with pytest.raises(EngineError, match="513 positions but the model's context ends at 512"):
        engine.forward([tokens(6, 0, [1] * 513)])


def test_second_load_is_rejected(engine: HostedEngine, tiny: Path) -> None:
    with pytest.raises(EngineError, match=r"already holds tiny\[0:4\]"):
        engine.load(TINY, tiny)


def test_capabilities_name_version_and_device(engine: HostedEngine) -> None:
    found = engine.capabilities()
    assert found.name in CHOSEN
    assert found.version
    assert found.device
    assert found.ms_per_layer is None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OTHERS)
def test_every_variant_matches_the_reference(name: str, variant: str, process: EngineProcess, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, **VARIANTS[variant])
    engine = process.load(name, TINY, path)
    prompt = PROMPT * 7
    reference = numpy_engine(path)
    ours, theirs = Ring([engine]).generate(prompt, 8), Ring([reference]).generate(prompt, 8)
    engine.close()
    assert ours.tokens == theirs.tokens
    assert largest_difference(ours, theirs) < TINY_TOLERANCES[reference.activations]


@pytest.mark.parametrize("name", OTHERS)
def test_quantized_gguf_matches_the_reference(name: str, process: EngineProcess, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quantization="Q4_1")
    engine = process.load(name, TINY, path)
    ours, theirs = Ring([engine]).generate(PROMPT, 8), Ring([numpy_engine(path)]).generate(PROMPT, 8)
    assert engine.activations() == "float16"
    engine.close()
    assert ours.tokens == theirs.tokens
    assert largest_difference(ours, theirs) < TINY_TOLERANCES["float16"]
