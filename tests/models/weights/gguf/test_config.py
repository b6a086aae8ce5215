"""The configuration of a GGUF file follows from its metadata and rope factors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from models.architecture import Architecture, Linear, Llama3, RopeScaling
from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import write_tiny_gguf


def test_llama_3_rope_factors_are_recognized(tmp_path: Path) -> None:
    found = gguf_with_rope_factors(tmp_path, llama3_factors(16, 10000.0))
    assert scaling_of(found) == Llama3(32.0, 1.0, 4.0, 8192)


def test_unknown_rope_factors_are_rejected(tmp_path: Path) -> None:
    factors = llama3_factors(16, 10000.0)
    factors[3] *= 1.5
    with pytest.raises(WeightsError, match="unknown rule"):
        gguf_with_rope_factors(tmp_path, factors)


def test_wrong_number_of_rope_factors_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="9 rope factors for heads of 16"):
        gguf_with_rope_factors(tmp_path, np.ones(9, np.float32))


def test_file_without_sizes_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "falcon.gguf"
    writer = gguf.GGUFWriter(str(path), "falcon")
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"falcon\.gguf does not say its falcon\.block_count"):
        open_weights(path)


LINEAR_4 = Linear(4.0)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, LINEAR_4),
        ({"llama.rope.scaling.factor": 4.0}, LINEAR_4),
        ({"llama.rope.scale_linear": 4.0}, LINEAR_4),
        ({"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0}, LINEAR_4),
        ({"llama.rope.scaling.factor": 0.0}, None),
        ({"llama.rope.scaling.type": "linear"}, None),
        ({"llama.rope.scale_linear": 1.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
    ],
    ids=str,
)
def test_scaling_without_a_type_is_linear(
    tmp_path: Path, keys: dict[str, str | float], scaling: RopeScaling | None
) -> None:
    weights = open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1, keys=keys))
    assert scaling_of(weights.architecture) == scaling


@pytest.mark.parametrize("kind", ["dynamic", "su2"])
def test_unknown_scaling_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    keys: dict[str, str | int | float] = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
    with pytest.raises(WeightsError, match=rf"tiny\.gguf asks for rope scaling '{kind}'.*; pick another model"):
        open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1, keys=keys))


def test_two_rules_of_scaling_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="by two rules"):
        gguf_with_rope_factors(tmp_path, llama3_factors(16, 10000.0), {"llama.rope.scaling.factor": 4.0})


def test_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    keys = {"split.no": 1, "split.count": 3, "split.tensors.count": 39}
    sentence = r"tiny\.gguf is one of the 3 files of a split model; name them as their makers do"
    with pytest.raises(WeightsError, match=sentence):
        open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1, keys=keys))


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_file_that_is_no_model_is_refused_by_type(tmp_path: Path, kind: str) -> None:
    with pytest.raises(WeightsError, match=f"of the type '{kind}' and goes with a model; point to the model's own"):
        open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1, keys={"general.type": kind}))


def scaling_of(architecture: Architecture) -> RopeScaling | None:
    """Return the scaling of the first layer's rope."""
    assert architecture.heads.rope is not None
    return architecture.heads.rope.scaling


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


def gguf_with_rope_factors(folder: Path, factors: np.ndarray, keys: dict[str, float] | None = None) -> Architecture:
    """Read the configuration of a tiny GGUF with `factors` among its tensors."""
    source = gguf.GGUFReader(write_tiny_gguf(folder / "plain.gguf", n_layers=1, keys=keys))
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
    weights = open_weights(folder / "factors.gguf")
    return weights.architecture
