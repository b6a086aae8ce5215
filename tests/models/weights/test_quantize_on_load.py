"""Float matrices are rounded when they are read, and kept in the cache; everything else is as it was."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.shard import Shard, whole
from models.weights.checkpoint import EMBEDDING, tensor_names
from models.weights.quantize_on_load import QuantizeOnLoad
from models.weights.reader import open_weights
from models.weights.rounded_file import FOLDER, KEPT, PART_AGE_S, RoundedFile
from tests.support.family_models import write_family_folder
from tests.support.models import write_tiny_gguf, write_tiny_llama

SHARD = whole("tiny", 4)
MATRIX, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"


def write_bfloat16(folder: Path) -> Path:
    return write_tiny_llama(folder, dtype="bfloat16")


def kept(root: Path) -> list[Path]:
    return sorted((root / FOLDER).iterdir())


@pytest.mark.parametrize("kind", ["BF16", "F16", "F32", "folder"])
def test_float_matrices_become_blocks(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    path = write_bfloat16(tmp_path) if kind == "folder" else write_tiny_gguf(file, quantization=kind)
    source = open_weights(path)
    weights = QuantizeOnLoad(source, SHARD, 4)
    forms = {name: weights.form(name) for name in (EMBEDDING, MATRIX, NORM)}
    blocks, table = weights.blocks(MATRIX), weights.blocks(EMBEDDING)
    assert blocks is not None
    assert table is not None
    assert (table.form, blocks.form, None) == tuple(forms.values())
    assert (table.form.bits, blocks.form.bits, blocks.form.block) == (8, 4, 32)
    exact = source.tensor(MATRIX)
    assert np.linalg.norm(weights.tensor(MATRIX) - exact) < 0.12 * np.linalg.norm(exact)
    np.testing.assert_array_equal(weights.tensor(MATRIX), blocks.rows(slice(None)))
    np.testing.assert_array_equal(weights.tensor(NORM), source.tensor(NORM))


def test_quantized_files_stay_as_they_are(tmp_path: Path) -> None:
    source = open_weights(write_tiny_gguf(tmp_path / "m.gguf", quantization="Q4_1"))
    weights = QuantizeOnLoad(source, SHARD, 8, RoundedFile(tmp_path / "m.gguf", SHARD, 8, tmp_path))
    assert not weights.rounds
    found, expected = weights.blocks(MATRIX), source.blocks(MATRIX)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.rows(slice(None)), expected.rows(slice(None)))
    assert not (tmp_path / FOLDER).exists()


def test_routers_and_experts_stay_float(tmp_path: Path) -> None:
    source = open_weights(write_family_folder(tmp_path / "m", "qwen3_moe"))
    architecture = source.architecture
    shard = whole("m", architecture.n_layers)
    weights = QuantizeOnLoad(source, shard, 8)
    for name in tensor_names(architecture, shard):
        if ".mlp." in name:
            assert weights.form(name) is None
    assert weights.rounds


def test_second_load_reads_the_kept_file(tmp_path: Path) -> None:
    path = write_bfloat16(tmp_path / "m")
    shard = Shard("tiny", 1, 3, 4)

    def matrix() -> np.ndarray:
        source = open_weights(path)
        return QuantizeOnLoad(source, shard, 8, RoundedFile(path, shard, 8, tmp_path)).tensor(MATRIX)

    first = matrix()
    (file,) = kept(tmp_path)
    written = file.stat().st_ino
    np.testing.assert_array_equal(matrix(), first)
    assert [found.stat().st_ino for found in kept(tmp_path)] == [written]
    source = open_weights(path)
    np.testing.assert_array_equal(QuantizeOnLoad(source, shard, 8).tensor(MATRIX), first)
    file.write_bytes(b"damaged")
    np.testing.assert_array_equal(matrix(), first)


def test_changed_model_gets_a_file_of_its_own(tmp_path: Path) -> None:
    path = write_bfloat16(tmp_path / "m")
    before = RoundedFile(path, SHARD, 8, tmp_path).path()
    os.utime(path / "model.safetensors", (1, 1))
    others = {RoundedFile(path, SHARD, bits, tmp_path).path() for bits in (8, 4)}
    assert len({before, *others}) == 3


def test_cache_keeps_the_files_used_last(tmp_path: Path) -> None:
    path = write_bfloat16(tmp_path / "m")
    folder = tmp_path / FOLDER
    folder.mkdir()
    for number in range(KEPT + 2):
        old = folder / f"{number}.gguf"
        old.touch()
        os.utime(old, (number, number))
    stale, fresh = folder / "a.1.part", folder / "b.1.part"
    for part in (stale, fresh):
        part.touch()
    os.utime(stale, (stale.stat().st_mtime - 2 * PART_AGE_S,) * 2)
    source = open_weights(path)
    QuantizeOnLoad(source, SHARD, 8, RoundedFile(path, SHARD, 8, tmp_path)).tensor(MATRIX)
    left = {file.name for file in kept(tmp_path)}
    assert len(left) == KEPT + 1  # with the fresh part
    assert "b.1.part" in left
    assert not left & {"a.1.part", "0.gguf", "1.gguf", "2.gguf"}


def test_model_loads_without_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_bfloat16(tmp_path / "m")
    (tmp_path / FOLDER).write_text("a file in the place of the folder")
    source = open_weights(path)
    with caplog.at_level(logging.WARNING):
        weights = QuantizeOnLoad(source, SHARD, 8, RoundedFile(path, SHARD, 8, tmp_path))
        assert weights.blocks(MATRIX) is not None
    assert "cannot be written" in caplog.text
    assert "free some space" in caplog.text
