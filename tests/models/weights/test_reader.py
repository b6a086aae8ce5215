"""Weights are opened by the kind of their path, and a shard reads only its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import WeightsError
from models.weights.reader import open_weights
from tests.support.models import default_model_path, write_tiny_gguf


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
        "held = [weights.tensor(name) for name in tensor_names(weights.architecture, shard)]; "
        "print((process.memory_info().rss - before) / 1e6)"
    )
    command = [sys.executable, "-c", script, str(path), str(start), str(end)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.parametrize("name", ["MODEL.GGUF", "sha256-0123456789abcdef", "model"])
def test_gguf_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    weights = open_weights(write_tiny_gguf(tmp_path / name, n_layers=1))
    assert weights.architecture.n_layers == 1


def test_path_of_another_kind_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK\3\4" * 99)
    with pytest.raises(WeightsError, match=r"model\.bin is neither a model folder nor a GGUF file"):
        open_weights(tmp_path / "model.bin")


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.gguf cannot be read \(No such file"):
        open_weights(tmp_path / "gone.gguf")


def test_folder_of_gguf_files_is_rejected(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1)
    with pytest.raises(WeightsError, match=r"has no config\.json; point to the \.gguf file in it"):
        open_weights(tmp_path)
