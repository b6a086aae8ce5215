"""Every architecture that may be cut has the bits of the whole model at every cut that `cut_table` allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.shard import Shard, whole
from engines.engine import Chunk, FloatArray
from engines.errors import EngineError
from engines.llamacpp.cut_table import RULES, cut_rule, windowed_layers
from tests.support.engines import EngineProcess, Forwards, Ring, cut
from tests.support.gguf_models import FAMILIES, VOCAB, write_model

PROMPT = np.random.default_rng(1).integers(0, VOCAB, 40).tolist()  # longer than the window
STEPS = 4


def logits(stages: list[Forwards]) -> FloatArray:
    """Return the logits of greedy steps after the prompt."""
    return np.array(Ring(stages).generate(PROMPT, STEPS).logits)


def allowed(shard: Shard, architecture: str) -> bool:
    try:
        windowed_layers(cut_rule(architecture, shard), None, shard)
    except EngineError:
        return False
    return True


def test_every_rule_has_a_model() -> None:
    assert RULES.keys() == FAMILIES.keys() - {"mamba", "olmo"}


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
@pytest.mark.parametrize("architecture", RULES)
def test_every_cut_gives_the_bits_of_the_whole_model(
    architecture: str, quantization: str, process: EngineProcess, tmp_path: Path
) -> None:
    path, n_layers = write_model(tmp_path / "model.gguf", architecture, quantization), FAMILIES[architecture].n_layers
    unsplit = process.load("llamacpp", whole("model", n_layers), path)
    expected = logits([unsplit])
    assert np.isfinite(expected).all()
    assert expected.std() > 0.05
    tried = 0
    for cuts in [*((layer,) for layer in range(1, n_layers)), (2, 4), (4, 8)]:
        shards = cut("model", n_layers, *cuts) if cuts[-1] < n_layers else []
        if shards and all(allowed(shard, architecture) for shard in shards):
            stages = [process.load("llamacpp", shard, path) for shard in shards]
            np.testing.assert_array_equal(logits([*stages]), expected)
            tried += 1
            for stage in stages:
                stage.close()
    unsplit.close()
    assert tried >= 2


@pytest.mark.parametrize("architecture", RULES)
def test_positions_take_the_memory_that_is_counted(architecture: str, process: EngineProcess, tmp_path: Path) -> None:
    path, n_layers = write_model(tmp_path / "model.gguf", architecture), FAMILIES[architecture].n_layers
    engine = process.load("llamacpp", Shard("model", 0, n_layers - n_layers % 4, n_layers), path)
    engine.forward([Chunk(0, 0, np.array(PROMPT, np.int32))])
    one, all_of_them = engine.save(0, 0, 1).nbytes, engine.save(0, 0, len(PROMPT)).nbytes
    counted = engine.position_bytes()
    engine.close()
    bookkeeping = (all_of_them - one) / (len(PROMPT) - 1) - counted
    assert 0 <= bookkeeping <= 64


@pytest.mark.parametrize("said", [3, [True, False, True, True, False, False, True, True, False]])
def test_windows_that_a_file_names_hold_in_its_parts(
    said: int | list[bool], process: EngineProcess, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", "gemma3", attention__sliding_window_pattern=said)
    expected = logits([process.load("llamacpp", whole("model", 9), path)])
    plain = write_model(tmp_path / "plain.gguf", "gemma3")
    assert not np.array_equal(logits([process.load("llamacpp", whole("model", 9), plain)]), expected)
    stages = [process.load("llamacpp", shard, path) for shard in cut("model", 9, 3, 7)]
    np.testing.assert_array_equal(logits([*stages]), expected)
