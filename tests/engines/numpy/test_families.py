"""Every family in numpy has the logits of mlx-lm's own class, from both kinds of files and at every cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from engines.engine import Chunk, FloatArray
from engines.numpy.engine import NumpyEngine
from models.families import FAMILIES
from models.weights.reader import open_weights
from tests.support.engines import ROOT, cut
from tests.support.family_models import CONFIGS, VOCABULARY, tiny_architecture, write_family_folder, write_family_gguf

TOLERANCE = 2e-5
"""The largest difference of a logit. The logits are up to 4, and the largest difference measured is 7e-6."""

IDS = np.random.default_rng(1).integers(0, VOCABULARY, 40).tolist()
FROM_FOLDER = [name for name in CONFIGS if not FAMILIES[tiny_architecture(name).family].gguf_only]
NOT_IN_GGUF = ("llama3 rope", "mistral with windows", "qwen3_moe with a dense layer")
FROM_GGUF = [name for name in CONFIGS if name not in NOT_IN_GGUF]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    parent = tmp_path_factory.mktemp("families")
    return {name: write_family_folder(parent / name, name) for name in CONFIGS}


@pytest.fixture(scope="module")
def expected(folders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, FloatArray]:
    """The logits (ids, vocab) of each model by mlx-lm."""
    result = tmp_path_factory.mktemp("oracle") / "logits.npz"
    command = [sys.executable, "-m", "tests.support.mlx_oracle", str(result), json.dumps(IDS)]
    subprocess.run([*command, *map(str, folders.values())], cwd=ROOT, check=True, timeout=120)
    return dict(np.load(result))


def logits_of(stages: Sequence[NumpyEngine], pieces: Sequence[Sequence[int]]) -> FloatArray:
    """Run pieces of a text one after another through a ring. Returns the logits (ids, vocab) of all."""
    outputs, position = [], 0
    for piece in pieces:
        inputs: np.ndarray = np.array(piece, np.int32)
        for stage in stages:
            inputs = stage.forward([Chunk(0, position, inputs, len(piece))])[0]
        outputs.append(inputs)
        position += len(piece)
    return np.concatenate(outputs)


def ring(path: Path, *cuts: int) -> list[NumpyEngine]:
    stages = []
    weights = open_weights(path)
    for shard in cut("tiny", weights.architecture.n_layers, *cuts):
        stages.append(NumpyEngine())
        stages[-1].read(shard, weights)
    return stages


@pytest.mark.parametrize("name", FROM_FOLDER)
def test_checkpoint_gives_the_logits_of_mlx_lm(
    name: str, folders: Mapping[str, Path], expected: Mapping[str, FloatArray]
) -> None:
    np.testing.assert_allclose(logits_of(ring(folders[name]), [IDS]), expected[name], atol=TOLERANCE)


@pytest.mark.parametrize("name", FROM_GGUF)
def test_gguf_gives_the_logits_of_mlx_lm(name: str, expected: Mapping[str, FloatArray], tmp_path: Path) -> None:
    path = write_family_gguf(tmp_path / "tiny.gguf", name)
    np.testing.assert_allclose(logits_of(ring(path), [IDS]), expected[name], atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_cut_has_the_bits_of_the_whole(name: str, tmp_path: Path) -> None:
    gguf_only = name not in FROM_FOLDER
    path = write_family_gguf(tmp_path / "tiny.gguf", name) if gguf_only else write_family_folder(tmp_path / "m", name)
    pieces = [IDS[:17], IDS[17:18], IDS[18:19], IDS[19:23]]
    unsplit = logits_of(ring(path), pieces)
    every_cut = range(1, tiny_architecture(name).n_layers)
    np.testing.assert_array_equal(logits_of(ring(path, *every_cut), pieces), unsplit)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_has_the_logits_of_a_prompt(name: str, tmp_path: Path) -> None:
    gguf_only = name not in FROM_FOLDER
    path = write_family_gguf(tmp_path / "tiny.gguf", name) if gguf_only else write_family_folder(tmp_path / "m", name)
    pieces = [IDS[:20], *([token] for token in IDS[20:30]), IDS[30:]]
    np.testing.assert_allclose(logits_of(ring(path), pieces), logits_of(ring(path), [IDS]), atol=TOLERANCE)
