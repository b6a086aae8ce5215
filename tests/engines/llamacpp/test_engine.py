"""The engine keeps the contract of every engine: ragged batches, truncation, copies, and errors that name the cause."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bus.process import CANNOT_START
from cluster.shard import whole
from engines.engine import Chunk
from engines.errors import EngineError
from engines.llamacpp import loaded_model
from engines.llamacpp.engine import LlamaCppEngine
from tests.support.engines import (
    PROMPT,
    ROOT,
    EngineProcess,
    HostedEngine,
    Ring,
    cut,
    largest_difference,
    numpy_engine,
    tokens,
)
from tests.support.gguf_models import FAMILIES, VOCAB, write_model
from tests.support.models import write_tiny_gguf
from tests.support.ring.ragged_batches import Sessions, check_many_batches

LAYERS = FAMILIES["llama"].n_layers
WHOLE = whole("model", LAYERS)
IDS = np.random.default_rng(2).integers(0, VOCAB, 900).tolist()
HALF_PRECISION = 2e-2
"""The largest difference from the reference that float16 keys and values make in a logit of about 1."""


@pytest.fixture(scope="module")
def engine(process: EngineProcess, llama: Path) -> HostedEngine:
    return process.load("llamacpp", WHOLE, llama)


@pytest.fixture
def local(models: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> LlamaCppEngine:
    """Return an engine in this process."""
    monkeypatch.setenv("EXOBUS_CACHE", str(models))
    engine = LlamaCppEngine()
    engine.load(WHOLE, llama)
    return engine


def test_tokens_are_those_of_the_reference(process: EngineProcess, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    ours = Ring([process.load("llamacpp", whole("tiny", 4), path)]).generate(PROMPT, 32)
    theirs = Ring([numpy_engine(path)]).generate(PROMPT, 32)
    assert ours.tokens == theirs.tokens
    assert largest_difference(ours, theirs) < HALF_PRECISION


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt-oss"])
def test_ragged_batches_have_the_bits_of_each_session_alone(
    architecture: str, process: EngineProcess, tmp_path: Path
) -> None:
    path, n_layers = write_model(tmp_path / "model.gguf", architecture, "Q8_0"), FAMILIES[architecture].n_layers
    stages = [process.load("llamacpp", shard, path) for shard in cut("model", n_layers, 2, 4)]
    sessions = Sessions(stages, process.load("llamacpp", whole("model", n_layers), path))
    check_many_batches(sessions, PROMPT)
    sessions.check({5: IDS[:30], 0: IDS[30:31]})
    sessions.truncate(5, 25)
    sessions.check({5: IDS[40:50], 4: IDS[50:52]}, atol=0)


def test_batch_of_more_rows_than_a_pass_keeps_its_order(engine: HostedEngine) -> None:
    batch = [tokens(0, 0, IDS[:500]), Chunk(1, 0, np.array(IDS[:300], np.int32), 3), tokens(2, 0, IDS[:2])]
    together = engine.forward(batch)
    assert [output.shape for output in together] == [(1, VOCAB), (3, VOCAB), (1, VOCAB)]
    for slot in (0, 1, 2):
        engine.release(slot)
    for chunk, output in zip(batch, together, strict=True):
        np.testing.assert_allclose(engine.forward([chunk])[0], output, atol=0.05)
        engine.release(chunk.slot)


def test_stored_blocks_continue_with_the_same_bits(engine: HostedEngine) -> None:
    engine.forward([tokens(7, 0, IDS[:70], wants_logits=False)])
    blocks = [engine.save(7, start, start + 32) for start in (0, 32)]
    assert all(block.nbytes >= 32 * engine.position_bytes() for block in blocks)
    engine.truncate(7, 64)
    for block in blocks:
        engine.restore(8, block)
    for begin, end in ((64, 90), (90, 91), (91, 100)):
        original, continued = (engine.forward([tokens(slot, begin, IDS[begin:end])])[0] for slot in (7, 8))
        np.testing.assert_array_equal(continued, original)
    for slot in (7, 8):
        engine.release(slot)


@pytest.mark.parametrize("architecture", ["gemma3", "gpt-oss"])
def test_stored_positions_outside_the_window_are_kept(
    architecture: str, process: EngineProcess, tmp_path: Path
) -> None:
    path, n_layers = write_model(tmp_path / "model.gguf", architecture, "Q8_0"), FAMILIES[architecture].n_layers
    engine = process.load("llamacpp", whole("model", n_layers), path)
    engine.forward([tokens(0, 0, IDS[:60])])
    copy = engine.save(0, 0, 60)
    engine.truncate(0, 40)
    original = engine.forward([tokens(0, 40, IDS[70:75])])[0]
    engine.release(0)
    engine.restore(1, copy)
    engine.truncate(1, 40)
    continued = engine.forward([tokens(1, 40, IDS[70:75])])[0]
    engine.close()
    np.testing.assert_array_equal(continued, original)


def test_stored_block_fits_between_gaps(local: LlamaCppEngine) -> None:
    long, others = 400, range(1, 61)
    each = (local.positions(0) - long) // len(others)
    local.forward([tokens(0, 0, IDS[:long])])
    for slot in others:
        local.forward([tokens(slot, 0, IDS[:each], wants_logits=False)])
    block = local.save(0, 0, long)
    local.truncate(0, long - 1)
    expected = local.forward([tokens(0, long - 1, [5])])[0]
    local.release(0)
    local.forward([tokens(61, 0, IDS[:long], wants_logits=False)])  # takes all cells that are free
    for slot in others[::2]:
        local.truncate(slot, each - 17)
    local.restore(62, block)
    local.truncate(62, long - 1)
    np.testing.assert_allclose(local.forward([tokens(62, long - 1, [5])])[0], expected, atol=0.1)
    local.close()


def test_full_memory_is_an_error_and_loses_the_slot(llama: Path) -> None:
    engine = LlamaCppEngine()
    engine.load(WHOLE, llama, 1 << 21)
    each = engine.positions(0) // 2
    for slot in (0, 1):
        engine.forward([tokens(slot, 0, IDS[:each], wants_logits=False)])
    with pytest.raises(EngineError, match="no memory is left for keys and values"):
        engine.forward([tokens(0, each, IDS[:100])])
    with pytest.raises(EngineError, match="slot 0 holds 0 positions"):
        engine.forward([tokens(0, each, [1])])
    assert engine.forward([tokens(1, each, [1])])[0].shape == (1, VOCAB)
    engine.close()


def test_memory_is_half_of_what_is_given(local: LlamaCppEngine, llama: Path) -> None:
    other = LlamaCppEngine()
    other.load(WHOLE, llama, 2 * 1024 * local.position_bytes)
    assert other.positions(0) == 1024
    assert local.position_bytes == 2 * LAYERS * 2 * 64
    other.close()
    local.close()


@pytest.mark.parametrize(("kind", "times"), [("Q4_0", 1), ("Q8_0", 0)])
def test_pages_of_weights_that_are_stored_anew_are_let_go(
    kind: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[None] = []
    monkeypatch.setattr(loaded_model, "return_mapped_pages", lambda: called.append(None))
    engine, path = LlamaCppEngine(), write_model(tmp_path / "model.gguf", "llama", kind)
    engine.load(WHOLE, path)
    assert len(called) == times
    engine.close()


def test_folder_is_refused_with_other_engines(process: EngineProcess, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"reads GGUF files and .* is a folder; try mlx or onnx"):
        process.load("llamacpp", WHOLE, tmp_path)


def test_shard_of_another_model_is_refused(process: EngineProcess, llama: Path) -> None:
    with pytest.raises(EngineError, match="cut for 30 layers but the weights have 5"):
        process.load("llamacpp", whole("other", 30), llama)


def test_second_load_is_refused(engine: HostedEngine, llama: Path) -> None:
    with pytest.raises(EngineError, match=r"already holds model\[0:5\]"):
        engine.load(WHOLE, llama)


def test_model_that_the_library_refuses_is_named_with_its_reason(process: EngineProcess, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", block_count=6)
    with pytest.raises(EngineError, match=r"llama.cpp cannot load .*model.gguf: .*blk.5"):
        process.load("llamacpp", whole("model", 6), path)


def test_model_that_keeps_one_state_is_refused(process: EngineProcess, tmp_path: Path) -> None:
    path = write_model(tmp_path / "mamba.gguf", "mamba")
    with pytest.raises(EngineError, match=r"mamba.gguf keeps one state .* pick a model with attention in all layers"):
        process.load("llamacpp", WHOLE, path)


def test_failed_assertion_ends_the_process_with_one_sentence(tmp_path: Path) -> None:
    path = write_model(tmp_path / "odd.gguf", "llama", expert_count=3)
    program = "import sys, pathlib, cluster.shard as s, engines.registry as r\n"
    program += "r.create('llamacpp').load(s.whole('odd', 5), pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, path], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == CANNOT_START
    assert re.fullmatch(r"llama.cpp gave up on odd.gguf \(.*GGML_ASSERT.*\); use another engine for it\n", done.stderr)


def test_capabilities_name_version_and_device(engine: HostedEngine) -> None:
    found = engine.capabilities()
    assert (found.name, found.device) == ("llamacpp", "CPU")
    assert found.version in ("0.5.0", "0.6.0")


def test_hidden_states_stay_float32(engine: HostedEngine) -> None:
    assert engine.activations() == "float32"


def test_position_gap_is_refused(engine: HostedEngine) -> None:
    engine.forward([tokens(6, 0, [1, 2, 3])])
    with pytest.raises(EngineError, match="slot 6 holds 3 positions but a chunk came for position 4"):
        engine.forward([tokens(6, 4, [1])])
    engine.release(6)
    engine.release(6)
