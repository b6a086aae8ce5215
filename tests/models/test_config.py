"""A configuration that cannot be run is rejected with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import TinyShape, write_tiny_llama


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "family 'mamba'"),
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
        ({"quantization_config": {"bits": 4}}, "quantized"),
    ],
)
def test_unsupported_configuration_is_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_tiny_llama(tmp_path)
    (folder / "config.json").write_text(json.dumps(TinyShape().config("float32") | change))
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(folder)
    assert "config.json" in str(caught.value)
