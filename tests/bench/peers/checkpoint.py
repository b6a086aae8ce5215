"""The default model as a folder for servers that read no GGUF: `python -m tests.bench.peers.checkpoint FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import safetensors.numpy

from models.tokenizers.gguf_tokenizer import ensure_tokenizer
from models.weights.reader import open_weights
from tests.support.models import default_model_path

MODEL_FILE = "model.safetensors"


def write_checkpoint(folder: Path) -> None:
    """Write config.json, the tokenizer and, last, all weights as float32 to `folder`, unless it has them."""
    if (folder / MODEL_FILE).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    gguf = default_model_path()
    ensure_tokenizer(gguf, folder)
    weights = open_weights(gguf)
    tensors = {name: weights.tensor(name) for name in weights.names()}
    (folder / "config.json").write_text(json.dumps({**weights.settings, "torch_dtype": "float32"}))
    partial = folder / f"{MODEL_FILE}.partial"
    safetensors.numpy.save_file(tensors, partial, {"format": "mlx"})
    partial.rename(folder / MODEL_FILE)


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]))
