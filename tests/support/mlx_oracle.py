"""Computes the logits of tiny models with mlx-lm's own classes. Run in a child process, since it imports mlx_lm.

Arguments are a file for the results, token ids as JSON, and model folders. The file has an array (ids, vocab) for each
folder, by its name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np


def oracle_logits(folder: Path, ids: Sequence[int]) -> np.ndarray:
    """Return the logits (ids, vocab) of a whole prompt."""
    from mlx_lm.utils import _get_classes

    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    weights: Any = mx.load(str(folder / "model.safetensors"))
    if config["model_type"] == "gpt_oss":  # exobus reads it from GGUF files only, so it is here under canonical names
        weights = {name.replace(".mlp.gate.", ".mlp.router."): weight for name, weight in weights.items()}
    weights = model.sanitize(weights) if hasattr(model, "sanitize") else weights
    model.load_weights(list(weights.items()))
    return np.array(model(mx.array([list(ids)]))[0], np.float32)


if __name__ == "__main__":
    result, ids, *folders = sys.argv[1:]
    logits = {Path(folder).name: oracle_logits(Path(folder), json.loads(ids)) for folder in folders}
    np.savez(result, allow_pickle=False, **logits)
