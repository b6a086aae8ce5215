"""A safetensors folder gives its tensors as float32, and files that contradict themselves are rejected."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shard import whole
from models.errors import WeightsError
from models.weights.checkpoint import tensor_names
from models.weights.reader import open_weights
from tests.support.models import TinyShape, stored_bytes, write_tiny_llama


def write_safetensors(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_match_those_of_the_safetensors_package(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = write_tiny_llama(tmp_path, dtype=dtype, shards=shards)
    weights = open_weights(folder)
    seen = set()
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, "np") as reader:
            for name in reader.keys():  # noqa: SIM118  not a mapping
                expected = reader.get_tensor(name).astype(np.float32)
                np.testing.assert_array_equal(weights.tensor(name), expected)
                seen.add(name)
    assert weights.names() == seen == set(tensor_names(weights.architecture, whole("tiny", 4)))
    assert weights.architecture.dtype == dtype


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    tensors = TinyShape().tensors()
    weights = open_weights(write_tiny_llama(tmp_path, dtype="bfloat16"))
    for name, tensor in tensors.items():
        bits = np.frombuffer(stored_bytes(tensor, "bfloat16"), np.uint16).astype(np.uint32) << 16
        found = weights.tensor(name)
        np.testing.assert_array_equal(found, bits.view(np.float32).reshape(tensor.shape))
        np.testing.assert_allclose(found, tensor, rtol=2**-8)


def test_tensor_is_a_new_contiguous_float32_array(tmp_path: Path) -> None:
    weights = open_weights(write_tiny_llama(tmp_path))
    first = weights.tensor("model.norm.weight")
    first[:] = 0
    again = weights.tensor("model.norm.weight")
    assert again.flags.c_contiguous
    assert again.flags.writeable
    assert again.dtype == np.float32
    assert again.any()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "does not fit its bytes"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", "does not fit its bytes"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "outside the file"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234", "outside the file"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234", "outside the file"),
        ({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 4]}}, b"1234", "stores 'a' as F4"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"1234", "not of the safetensors format"),
        ([1, 2], b"", "not of the safetensors format"),
        (b"{" * 100_000, b"", "not of the safetensors format"),
        (b"\xff{}", b"", "not of the safetensors format"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            b"1234",
            "twice",
        ),
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            b"123412341234",
            "over one another",
        ),
        (
            {"model.norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
            b"12341234",
            "but its configuration says",
        ),
    ],
)
def test_false_header_is_rejected(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    folder = write_tiny_llama(tmp_path)
    write_safetensors(folder / "model.safetensors", header, data)
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(folder)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 7, 8, 60, 5000])
def test_truncated_file_is_rejected(tmp_path: Path, length: int) -> None:
    path = write_tiny_llama(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match="delete it and fetch the model again"):
        open_weights(tmp_path)


def test_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path) / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)  # sparse, so the length is within the file
    with pytest.raises(WeightsError, match="claims a header"):
        open_weights(tmp_path)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_random_bytes_are_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, noise: bytes, length: int) -> None:
    folder = write_tiny_llama(tmp_path_factory.mktemp("noise"), n_layers=1)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + noise)
    error = error_of(folder)
    assert "\n" not in error
    assert error or length <= len(noise)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path, shards=3)
    (folder / "model-00003-of-00003.safetensors").unlink()
    weights = open_weights(folder)
    with pytest.raises(WeightsError, match=r"holds no tensor .*model\.norm\.weight"):
        weights.tensor("model.norm.weight")


def test_folder_without_weights_is_rejected(tmp_path: Path) -> None:
    (write_tiny_llama(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no safetensors file"):
        open_weights(tmp_path)


def error_of(path: Path) -> str:
    """Return the sentence of a WeightsError, or nothing if the weights could be opened."""
    try:
        open_weights(path)
    except WeightsError as error:
        return str(error)
    return ""


def set_tie(folder: Path, tie: bool) -> None:
    """Change `tie_word_embeddings` in the config.json of a folder."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tie}))


@pytest.mark.parametrize("shards", [1, 3])
def test_head_that_is_there_counts(tmp_path: Path, shards: int) -> None:
    folder = write_tiny_llama(tmp_path, tie=False, shards=shards)
    set_tie(folder, True)
    weights = open_weights(folder)
    assert not weights.architecture.tied_embedding
    assert "lm_head.weight" in tensor_names(weights.architecture, whole("tiny", 4))
    np.testing.assert_array_equal(weights.tensor("lm_head.weight"), TinyShape(tie=False).tensors()["lm_head.weight"])


@pytest.mark.parametrize("shards", [1, 3])
def test_promised_head_that_is_missing_is_refused(tmp_path: Path, shards: int) -> None:
    folder = write_tiny_llama(tmp_path, shards=shards)
    set_tie(folder, False)
    listing = r"model\.safetensors" if shards == 1 else r"model\.safetensors\.index\.json"
    with pytest.raises(WeightsError, match=rf"{listing} has no lm_head\.weight, though config\.json"):
        open_weights(folder)


def test_stage_knows_of_a_head_in_a_file_of_another_stage(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path, tie=False, shards=3)
    set_tie(folder, True)
    (folder / "model-00003-of-00003.safetensors").unlink()
    weights = open_weights(folder)
    assert not weights.architecture.tied_embedding
