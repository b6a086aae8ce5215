"""Matrices of 8-bit floats are read with their scales, as DeepSeek's and compressed-tensors' files store them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn

from models.errors import WeightsError
from models.settings import Settings
from models.stored_model import has_float8
from models.weights.float8 import scale_fits, scaled
from models.weights.reader import open_weights
from tests.support.models import TinyShape

MATRIX = "model.layers.1.mlp.down_proj.weight"
BLOCKS: dict[str, object] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GROUPS = {"group_0": {"weights": {"type": "float", "num_bits": 8}}}
ROWS: dict[str, object] = {"quant_method": "compressed-tensors", "config_groups": GROUPS}
SHAPE = TinyShape(n_layers=2, hidden=192)
HASH = "3f5d77299f8d7b42"


def write_float8(
    folder: Path, settings: dict[str, object], suffix: str, scale_of: Callable[[np.ndarray], np.ndarray]
) -> Path:
    """Write a model with matrices of 8-bit floats in its layers: weight / scale, rounded."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE.config("bfloat16") | {"quantization_config": settings}))
    header, data = {}, b""
    for name, tensor in SHAPE.tensors().items():
        stored = {name: ("F32", tensor)}
        if name.endswith("_proj.weight"):
            scale = scale_of(tensor).astype("<f4")
            small = (tensor / scaled(np.ones_like(tensor), scale, 0, len(tensor))).astype(float8_e4m3fn)
            stored = {name: ("F8_E4M3", small), name + suffix: ("F32", scale)}
        for key, (kind, array) in stored.items():
            begin, data = len(data), data + array.tobytes()
            header[key] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def of_blocks(tensor: np.ndarray) -> np.ndarray:
    counts = [-(-size // 128) for size in tensor.shape]
    return np.arange(1, 1 + counts[0] * counts[1], dtype=np.float32).reshape(counts) / np.float32(256)


def of_rows(tensor: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(tensor).max(axis=1, keepdims=True) / 448)


def of_all(tensor: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(tensor).max() / 448)


@pytest.mark.parametrize(
    ("settings", "suffix", "scale_of"),
    [(BLOCKS, "_scale_inv", of_blocks), (ROWS, "_scale", of_rows), (ROWS, "_scale", of_all)],
    ids=["blocks", "rows", "all"],
)
def test_matrices_are_multiplied_with_their_scales(
    tmp_path: Path, settings: dict[str, object], suffix: str, scale_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    path = write_float8(tmp_path / "m", settings, suffix, scale_of)
    expected = SHAPE.tensors()
    weights = open_weights(path)
    for name in (MATRIX, "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        found = weights.tensor(name)
        assert np.linalg.norm(found - expected[name]) < 0.04 * np.linalg.norm(expected[name])


def test_dequantized_numbers_never_change() -> None:
    codes = np.arange(256 * 192, dtype=np.uint32).astype(np.uint8).reshape(256, 192) & np.uint8(0xBF)
    scale = np.arange(1, 5, dtype=np.float32).reshape(2, 2) / np.float32(64)
    values = scaled(codes.view(float8_e4m3fn).astype(np.float32), scale, 0, 256) + np.float32(0)
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()[:16] == HASH


def test_rows_of_a_matrix_get_their_part_of_the_scale() -> None:
    scale = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    whole = scaled(np.ones((300, 200), np.float32), scale, 0, 300)
    np.testing.assert_array_equal(scaled(np.ones((170, 200), np.float32), scale, 130, 300), whole[130:])
    assert whole[127, 0] == 1
    assert whole[128, 199] == 4
    assert [scale_fits((300, 200), shape) for shape in ((3, 2), (), (300,), (300, 1), (2, 2), (3, 2, 1))] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


def test_matrix_without_its_scale_is_refused(tmp_path: Path) -> None:
    path = write_float8(tmp_path / "m", BLOCKS, "_other", of_blocks)
    weights = open_weights(path)
    with pytest.raises(WeightsError, match="8-bit floats without a scale"):
        weights.tensor(MATRIX)


@pytest.mark.parametrize(
    ("quantization", "known"),
    [
        (BLOCKS, True),
        (ROWS, True),
        ({"quant_method": "gptq", "bits": 4}, False),
        ({"quant_method": "compressed-tensors"}, False),
    ],
)
def test_other_quantizations_stay_with_mlx(quantization: dict[str, object], known: bool) -> None:
    assert has_float8(Settings({"quantization_config": quantization}, "config.json")) == known
