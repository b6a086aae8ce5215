"""A model's tensors are found in fused ones and among single experts, and only a shard's own are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.shard import Shard, whole
from models.errors import WeightsError
from models.weights.checkpoint import tensor_shapes
from models.weights.layout import safetensors_places, stored_names
from models.weights.reader import open_weights
from tests.support.family_models import CONFIGS, stored_tensors, tiny_architecture, write_family_folder
from tests.support.models import write_safetensors


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gpt_oss"])
def test_every_tensor_has_the_shape_of_its_description(name: str, tmp_path: Path) -> None:
    architecture = tiny_architecture(name)
    shapes = tensor_shapes(architecture, whole(name, architecture.n_layers))
    weights = open_weights(write_family_folder(tmp_path / "model", name))
    assert weights.names() == shapes.keys()
    for tensor, shape in shapes.items():
        assert weights.tensor(tensor).shape == shape
        assert weights.tensor(tensor).flags.c_contiguous


def test_parts_of_a_fused_tensor_follow_one_another(tmp_path: Path) -> None:
    stored = stored_tensors(tiny_architecture("phi3"), single_experts=False)
    weights = open_weights(write_family_folder(tmp_path / "model", "phi3"))
    parts = [weights.tensor(f"model.layers.1.self_attn.{part}_proj.weight") for part in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), stored["model.layers.1.self_attn.qkv_proj.weight"])


def test_fused_tensor_of_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    folder = write_family_folder(tmp_path / "model", "phi3")
    stored = stored_tensors(tiny_architecture("phi3"), single_experts=False)
    stored["model.layers.1.self_attn.qkv_proj.weight"] = np.zeros((64, 64), np.float32)
    write_safetensors(folder / "model.safetensors", stored, "float32")
    sentence = (
        r"model\.safetensors holds model\.layers\.1\.self_attn\.qkv_proj\.weight as \[64, 64\].* says \[256, 128\]"
    )
    with pytest.raises(WeightsError, match=sentence):
        open_weights(folder)


def test_shard_needs_the_stored_tensors_of_its_layers() -> None:
    names = stored_names(safetensors_places(tiny_architecture("qwen3_moe"), Shard("tiny", 1, 2, 3)))
    assert all(name.startswith("model.layers.1.") for name in names)
    experts = [name for name in names if ".experts." in name]
    assert len(experts) == len(set(experts)) == 3 * 6
    assert "model.layers.1.mlp.experts.5.down_proj.weight" in experts


def test_layer_without_one_expert_is_not_there(tmp_path: Path) -> None:
    folder = write_family_folder(tmp_path / "model", "qwen3_moe")
    stored = stored_tensors(tiny_architecture("qwen3_moe"), single_experts=True)
    del stored["model.layers.1.mlp.experts.3.up_proj.weight"]
    write_safetensors(folder / "model.safetensors", stored, "float32")
    weights = open_weights(folder)
    with pytest.raises(WeightsError, match=r"no tensor 'model\.layers\.1\.mlp\.experts"):
        weights.tensor("model.layers.1.mlp.experts.up_proj.weight")
