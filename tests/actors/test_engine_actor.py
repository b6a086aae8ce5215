"""Which engine a process makes for the model that it is to load."""

from __future__ import annotations

import json
from pathlib import Path

from actors.engine_actor import engine_for
from tests.support.models import TinyShape, write_tiny_gguf, write_tiny_llama


def test_mlx_runs_what_no_other_engine_has(tmp_path: Path) -> None:
    llama, gguf = write_tiny_llama(tmp_path / "llama"), write_tiny_gguf(tmp_path / "llama.gguf")
    mixtral = tmp_path / "mixtral"
    mixtral.mkdir()
    (mixtral / "config.json").write_text(json.dumps(TinyShape().config("float32") | {"model_type": "mixtral"}))
    assert [engine_for(path, "onnx", "auto") for path in (llama, gguf, mixtral)] == ["onnx", "onnx", "mlx"]
    assert engine_for(mixtral, "numpy", "numpy") == "numpy", "it was asked for, and refuses the model"
