"""Both formats give the same tensors under checkpoint names, a shard reads only its own, and lies are refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shard import Shard, whole
from models.config import ModelConfig, config_from_hf
from models.errors import WeightsError
from models.gguf_header import read_header
from models.gguf_weights import checkpoint_name, read_tensor
from models.weights import open_weights, shard_names
from tests.support.models import TinyShape, default_model_path, stored_bytes, write_tiny_gguf, write_tiny_llama

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def write_safetensors(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class TestSafetensors:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("shards", [1, 3])
    def test_tensors_equal_what_the_safetensors_package_reads(self, tmp_path: Path, dtype: str, shards: int) -> None:
        folder = write_tiny_llama(tmp_path, dtype=dtype, shards=shards)
        with open_weights(folder) as weights:
            seen = set()
            for file in folder.glob("*.safetensors"):
                with safetensors.safe_open(file, "np") as reader:
                    for name in reader.keys():  # noqa: SIM118  not a mapping
                        expected = reader.get_tensor(name).astype(np.float32)
                        np.testing.assert_array_equal(weights.tensor(name), expected)
                        seen.add(name)
            assert weights.names() == seen == set(shard_names(weights.config, whole("tiny", 4)))
            assert weights.config.dtype == dtype

    def test_bfloat16_is_widened_exactly(self, tmp_path: Path) -> None:
        tensors = TinyShape().tensors()
        with open_weights(write_tiny_llama(tmp_path, dtype="bfloat16")) as weights:
            for name, tensor in tensors.items():
                bits = np.frombuffer(stored_bytes(tensor, "bfloat16"), np.uint16).astype(np.uint32) << 16
                found = weights.tensor(name)
                np.testing.assert_array_equal(found, bits.view(np.float32).reshape(tensor.shape))
                np.testing.assert_allclose(found, tensor, rtol=2**-8)
            assert weights.nbytes == sum(tensor.size for tensor in tensors.values()) * 2

    def test_tensors_are_contiguous_float32_of_ones_own(self, tmp_path: Path) -> None:
        with open_weights(write_tiny_llama(tmp_path)) as weights:
            first = weights.tensor("model.norm.weight")
            first[:] = 0
            again = weights.tensor("model.norm.weight")
        assert again.flags.c_contiguous
        assert again.flags.writeable
        assert again.dtype == np.float32
        assert again.any()

    @pytest.mark.parametrize(
        ("header", "data", "says"),
        [
            ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "does not fit its bytes"),
            ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", "does not fit its bytes"),
            ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "outside the file"),
            ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234", "outside the file"),
            ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234", "outside the file"),
            ({"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}, b"1234", "stores 'a' as I8"),
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
                "where its configuration says",
            ),
        ],
    )
    def test_a_header_that_lies_is_refused_with_one_sentence(
        self, tmp_path: Path, header: object, data: bytes, says: str
    ) -> None:
        folder = write_tiny_llama(tmp_path)
        write_safetensors(folder / "model.safetensors", header, data)
        with pytest.raises(WeightsError, match=says) as caught:
            open_weights(folder)
        assert "model.safetensors" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("length", [0, 7, 8, 60, 5000])
    def test_a_truncated_file_is_refused(self, tmp_path: Path, length: int) -> None:
        path = write_tiny_llama(tmp_path) / "model.safetensors"
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(WeightsError, match="delete it and fetch the model again"):
            open_weights(tmp_path)

    def test_a_header_length_beyond_the_bound_is_not_read(self, tmp_path: Path) -> None:
        path = write_tiny_llama(tmp_path) / "model.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", 1 << 33))
            file.truncate(1 << 34)  # sparse: the length is inside the file
        with pytest.raises(WeightsError, match="claims a header"):
            open_weights(tmp_path)

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=200), st.integers(0, 300))
    def test_no_bytes_crash_the_reader(
        self, tmp_path_factory: pytest.TempPathFactory, noise: bytes, length: int
    ) -> None:
        folder = write_tiny_llama(tmp_path_factory.mktemp("noise"), n_layers=1)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + noise)
        said = refusal(folder)
        assert "\n" not in said
        assert said or length <= len(noise)

    def test_a_missing_tensor_is_named(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path, shards=3)
        (folder / "model-00003-of-00003.safetensors").unlink()
        with (
            open_weights(folder) as weights,
            pytest.raises(WeightsError, match=r"holds no tensor .*model\.norm\.weight"),
        ):
            weights.tensor("model.norm.weight")

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        (write_tiny_llama(tmp_path) / "model.safetensors").unlink()
        with pytest.raises(WeightsError, match="holds no safetensors file"):
            open_weights(tmp_path)


class TestGguf:
    def test_a_gguf_of_the_same_weights_gives_the_checkpoint_exactly(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "folder", tie=False)
        path = write_tiny_gguf(tmp_path / "tiny.gguf", tie=False)
        with open_weights(folder) as expected, open_weights(path) as found:
            assert found.names() == expected.names()
            for name in expected.names():
                np.testing.assert_array_equal(found.tensor(name), expected.tensor(name))
                assert found.tensor(name).flags.c_contiguous
            assert found.config.hf() == expected.config.hf()

    @pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 2e-2), ("Q4_1", 0.3)])
    def test_quantised_weights_are_near_the_checkpoint(self, tmp_path: Path, kind: str, error: float) -> None:
        tensors = TinyShape().tensors()
        with open_weights(write_tiny_gguf(tmp_path / "tiny.gguf", quantisation=kind)) as weights:
            for name, tensor in tensors.items():
                np.testing.assert_allclose(weights.tensor(name), tensor, atol=error)

    def test_every_tensor_of_the_default_model_equals_what_the_gguf_package_reads(self) -> None:
        path = default_model_path()
        tensors = read_header(path).tensors
        reader = gguf.GGUFReader(path)
        assert [tensor.name for tensor in reader.tensors] == list(tensors)
        for expected in reader.tensors:
            values = gguf.dequantize(expected.data, expected.tensor_type)
            np.testing.assert_array_equal(read_tensor(path, tensors[expected.name]), values)
        vocabulary = reader.fields["tokenizer.ggml.tokens"].contents()
        assert read_header(path).metadata["tokenizer.ggml.tokens"] == vocabulary

    def test_checkpoint_names_follow_the_architecture(self) -> None:
        assert checkpoint_name("blk.12.ffn_gate.weight") == "model.layers.12.mlp.gate_proj.weight"
        assert checkpoint_name("output_norm.weight") == "model.norm.weight"
        assert checkpoint_name("output.weight") == "lm_head.weight"
        assert checkpoint_name("rope_freqs.weight") == "rope_freqs.weight"

    def test_llama_3_rope_factors_are_recognised(self, tmp_path: Path) -> None:
        assert gguf_with_rope_factors(tmp_path, llama3_factors(16, 10000.0)).rope_scaling == LLAMA3_SCALING

    def test_other_rope_factors_are_refused(self, tmp_path: Path) -> None:
        factors = llama3_factors(16, 10000.0)
        factors[3] *= 1.5
        with pytest.raises(WeightsError, match="unknown rule"):
            gguf_with_rope_factors(tmp_path, factors)

    def test_rope_factors_of_another_number_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="9 rope factors for heads of 16"):
            gguf_with_rope_factors(tmp_path, np.ones(9, np.float32))

    def test_every_truncation_is_refused(self, tmp_path: Path) -> None:
        whole_file = write_tiny_gguf(tmp_path / "whole.gguf", n_layers=1, quantisation="Q4_1").read_bytes()
        cut = tmp_path / "cut.gguf"
        for length in [*range(0, len(whole_file) - 32, 997), len(whole_file) - 32]:
            cut.write_bytes(whole_file[:length])
            with pytest.raises(WeightsError, match="delete it and fetch the model again"):
                open_weights(cut)

    def test_another_magic_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "not.gguf"
        path.write_bytes(b"GGML" + bytes(100))
        with pytest.raises(WeightsError, match="does not begin like a GGUF file"):
            open_weights(path)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_a_changed_header_is_read_or_refused_and_never_crashes(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        content = bytearray(tiny_gguf_bytes(tmp_path_factory))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.getbasetemp() / "changed.gguf"
        path.write_bytes(content)
        assert "\n" not in refusal(path)

    def test_another_architecture_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "falcon.gguf"
        writer = gguf.GGUFWriter(str(path), "falcon")
        writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(WeightsError, match="'falcon', and exobus runs llama"):
            open_weights(path)


def refusal(path: Path) -> str:
    """The sentence of a refusal; empty when the weights could be opened. Any other exception is the test's failure."""
    try:
        open_weights(path)
    except WeightsError as error:
        return str(error)
    return ""


def tiny_gguf_bytes(factory: pytest.TempPathFactory) -> bytes:
    path = factory.getbasetemp() / "tiny_for_changes.gguf"
    return path.read_bytes() if path.exists() else write_tiny_gguf(path, n_layers=1).read_bytes()


def llama3_factors(head_dim: int, theta: float) -> np.ndarray:
    """The divisors of Llama 3.2's frequencies, worked out frequency by frequency as its reference code does."""
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
    """The configuration read from a tiny GGUF whose tensors include `factors`."""
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


class TestShards:
    @given(st.integers(1, 12), st.booleans(), st.booleans(), st.data())
    def test_tiling_shards_name_every_tensor_and_share_only_a_tied_embedding(
        self, n_layers: int, tie: bool, bias: bool, data: st.DataObject
    ) -> None:
        shape = TinyShape(n_layers=n_layers, tie=tie, attention_bias=bias, mlp_bias=bias)
        config = config_from_hf(shape.config("float32"), {}, "tiny")
        inner = data.draw(st.sets(st.integers(1, n_layers), max_size=5)) - {n_layers}
        cuts = [0, *sorted(inner), n_layers]
        parts = [shard_names(config, Shard("tiny", start, end, n_layers)) for start, end in pairwise(cuts)]
        named = [name for part in parts for name in part]
        assert set(named) == set(shape.tensors())
        shared = 1 if tie and len(parts) > 1 else 0
        assert len(named) == len(set(named)) + shared

    def test_half_the_layers_cost_about_half_the_memory(self) -> None:
        path = default_model_path()
        all_of_it = resident_megabytes(path, 0, 30)
        middle = resident_megabytes(path, 8, 23)
        first = resident_megabytes(path, 0, 15)
        assert 530 < all_of_it < 600
        assert middle < 0.45 * all_of_it  # 15 layers are 212 MB, without the embedding of 113
        assert first < 0.66 * all_of_it  # 15 layers and the embedding


def resident_megabytes(path: Path, start: int, end: int) -> float:
    """What a child process that reads these layers grows by."""
    script = (
        "import sys, psutil; from pathlib import Path; from cluster.shard import Shard; "
        "from models.weights import open_weights, shard_names; process = psutil.Process(); "
        "before = process.memory_info().rss; weights = open_weights(Path(sys.argv[1])); "
        "shard = Shard('m', int(sys.argv[2]), int(sys.argv[3]), 30); "
        "held = [weights.tensor(name) for name in shard_names(weights.config, shard)]; "
        "print((process.memory_info().rss - before) / 1e6)"
    )
    command = [sys.executable, "-c", script, str(path), str(start), str(end)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_a_path_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither a model folder"):
        open_weights(tmp_path / "model.bin")
