"""A configuration that cannot be run is rejected with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.shard import whole
from engines.numpy.engine import NumpyEngine
from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import TinyShape, write_tiny_llama


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 1 << 20}, "num_hidden_layers as 1048576"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 3}, "divide evenly"),
        ({"torch_dtype": "float8"}, "stores float8"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "factor"),
        ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope scaling"),
        ({"rope_scaling": {"factor": 4.0}}, "rope scaling None"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "'gelu'"),
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
        ({"model_type": "mamba"}, "is of the family 'mamba'"),
        ({"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}, "is of the family 'gpt_oss'"),
        ({"quantization_config": {"bits": 4}}, "is of a quantized model"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "is of a quantized model"),
    ],
)
def test_undescribed_model_runs_on_mlx_alone(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    folder = write_tiny_llama(tmp_path)
    changed = TinyShape().config("float32") | {"sliding_window": 8} | change
    (folder / "config.json").write_text(json.dumps(changed))
    weights = open_weights(folder)
    with pytest.raises(WeightsError, match=f"{what}.* only the engine mlx runs"):
        NumpyEngine().read(whole("tiny", 4), weights)
