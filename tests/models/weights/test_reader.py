"""Weights are opened by the kind of their path, and a shard reads only its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import default_model_path


def test_half_the_layers_take_half_the_memory() -> None:
    path = default_model_path()
    all_of_it = resident_megabytes(path, 0, 30)
    middle = resident_megabytes(path, 8, 23)
    first = resident_megabytes(path, 0, 15)
    assert 530 < all_of_it < 600
    assert middle < 0.45 * all_of_it  # 15 layers are 212 MB, without the embedding of 113
    assert first < 0.66 * all_of_it  # 15 layers and the embedding


def resident_megabytes(path: Path, start: int, end: int) -> float:
    """Return by how much a child process grows that reads these layers."""
    script = (
        "import sys, psutil; from pathlib import Path; from cluster.shard import Shard; "
        "from models.weights.checkpoint import tensor_names; "
        "from models.weights.reader import open_weights; process = psutil.Process(); "
        "before = process.memory_info().rss; weights = open_weights(Path(sys.argv[1])); "
        "shard = Shard('m', int(sys.argv[2]), int(sys.argv[3]), 30); "
        "held = [weights.tensor(name) for name in tensor_names(weights.config, shard)]; "
        "print((process.memory_info().rss - before) / 1e6)"
    )
    command = [sys.executable, "-c", script, str(path), str(start), str(end)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_path_of_another_kind_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither a model folder"):
        open_weights(tmp_path / "model.bin")
