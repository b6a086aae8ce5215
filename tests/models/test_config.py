"""Configurations survive conversion, and one that cannot be run is rejected with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.shard import whole
from engines.engine import EngineError
from engines.numpy.engine import NumpyEngine
from models.config import config_from_hf
from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import LLAMA3_2_SCALING, TinyShape, write_tiny_llama


def test_configuration_survives_its_hugging_face_form(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path, rope_scaling=LLAMA3_2_SCALING, attention_bias=True, tie=False)
    config = open_weights(folder).config
    assert config_from_hf(config.hf(), {}, "hf") == config
    assert config.rope_scaling == LLAMA3_2_SCALING
    assert config.eos_token_ids == (2,)


def test_newer_rope_parameters_are_read() -> None:
    values = TinyShape().config("float32") | {"rope_theta": None, "rope_scaling": None}
    values["rope_parameters"] = {"rope_theta": 500000.0, **LLAMA3_2_SCALING}
    config = config_from_hf(values, {}, "new")
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == LLAMA3_2_SCALING


def test_end_tokens_of_both_configurations_are_joined() -> None:
    config = config_from_hf(TinyShape().config("float32"), {"eos_token_id": [5, 2, 7]}, "tiny")
    assert config.eos_token_ids == (5, 2, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 0}, "n_layers"),
        ({"num_hidden_layers": "4"}, "n_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "divide evenly"),
        ({"torch_dtype": "float8"}, "stores float8"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "factor"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope scaling"),
        ({"rope_scaling": {"factor": 4.0}}, "rope scaling None"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ],
)
def test_unsupported_configuration_is_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_tiny_llama(tmp_path)
    (folder / "config.json").write_text(json.dumps(TinyShape().config("float32") | change))
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model_type": "mamba"}, "family 'mamba'"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantized"),
    ],
)
def test_undescribed_model_runs_on_mlx_alone(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    folder = write_tiny_llama(tmp_path)
    (folder / "config.json").write_text(json.dumps(TinyShape().config("float32") | change))
    with open_weights(folder) as weights, pytest.raises(EngineError, match=f"{what}.*; choose the engine mlx"):
        NumpyEngine().read(whole("tiny", 4), weights)
