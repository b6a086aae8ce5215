"""The configuration of a GGUF file follows from its metadata and rope factors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from models.config import ModelConfig
from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import LLAMA3_2_SCALING, write_tiny_gguf


def test_llama_3_rope_factors_are_recognized(tmp_path: Path) -> None:
    assert gguf_with_rope_factors(tmp_path, llama3_factors(16, 10000.0)).rope_scaling == LLAMA3_2_SCALING


def test_unknown_rope_factors_are_rejected(tmp_path: Path) -> None:
    factors = llama3_factors(16, 10000.0)
    factors[3] *= 1.5
    with pytest.raises(WeightsError, match="unknown rule"):
        gguf_with_rope_factors(tmp_path, factors)


def test_wrong_number_of_rope_factors_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="9 rope factors for heads of 16"):
        gguf_with_rope_factors(tmp_path, np.ones(9, np.float32))


def test_unsupported_architecture_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "falcon.gguf"
    writer = gguf.GGUFWriter(str(path), "falcon")
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match="'falcon', and exobus runs llama"):
        open_weights(path)


def llama3_factors(head_dim: int, theta: float) -> np.ndarray:
    """Compute the divisors of Llama 3.2's frequencies one by one, as its reference code does."""
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (index / head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    return np.array(factors, np.float32)


def gguf_with_rope_factors(folder: Path, factors: np.ndarray) -> ModelConfig:
    """Read the configuration of a tiny GGUF whose tensors include `factors`."""
    source = gguf.GGUFReader(write_tiny_gguf(folder / "plain.gguf", n_layers=1))
    writer = gguf.GGUFWriter(str(folder / "factors.gguf"), "llama")
    for key, field in source.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key, field.contents(), field.types[0])
    writer.add_tensor("rope_freqs.weight", factors)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_weights(folder / "factors.gguf") as weights:
        return weights.config
