"""MLX has the logits of the reference for the families that exobus describes, from a folder and from GGUF."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster.shard import whole
from engines.engine import FloatArray
from engines.errors import EngineError
from engines.mlx.engine import FROM_GGUF
from models.families import FAMILIES
from tests.support.engines import EngineProcess, Forwards, Ring, cut, numpy_engine
from tests.support.family_models import CONFIGS, VOCABULARY, tiny_architecture, write_family_folder, write_family_gguf

TOLERANCE = 2e-5
IDS = np.random.default_rng(3).integers(0, VOCABULARY, 40).tolist()
PIECES = (IDS[:21], IDS[21:22], IDS[22:])
FAMILY_OF = {name: tiny_architecture(name).family for name in CONFIGS}
FROM_FOLDER = [name for name, family in FAMILY_OF.items() if not FAMILIES[family].gguf_only]
SHORT_OF_MODULES = ("llama3 rope", "mistral with windows")
"""Models of which `write_family_gguf` writes no GGUF files."""


def logits_of(stages: Sequence[Forwards]) -> FloatArray:
    """Run the text through a ring, piece by piece. Returns the logits after each, (pieces, vocab)."""
    ring, position, rows = Ring(stages), 0, []
    for piece in PIECES:
        rows.append(ring.step(0, position, piece))
        position += len(piece)
    return np.stack(rows)


@pytest.mark.parametrize("name", FROM_FOLDER)
def test_folder_matches_the_reference(name: str, process: EngineProcess, tmp_path: Path) -> None:
    folder, layers = write_family_folder(tmp_path / "model", name), tiny_architecture(name).n_layers
    expected = logits_of([numpy_engine(folder, whole(name, layers))])
    ours = logits_of([process.load("mlx", shard, folder) for shard in cut(name, layers, 1)])
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


def test_newer_ropes_of_gemma3_are_read(process: EngineProcess, tmp_path: Path) -> None:
    folder = write_family_folder(tmp_path / "model", "gemma3_text")
    settings = json.loads((folder / "config.json").read_text())
    far = settings.pop("rope_scaling") | {"rope_theta": settings.pop("rope_theta")}
    near = {"rope_type": "default", "rope_theta": settings.pop("rope_local_base_freq") / 2}
    settings["rope_parameters"] = {"full_attention": far, "sliding_attention": near}
    (folder / "config.json").write_text(json.dumps(settings))
    expected = logits_of([numpy_engine(folder, whole("gemma3", 7))])
    ours = logits_of([process.load("mlx", whole("gemma3", 7), folder)])
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["phi3", "llama3 rope", "yarn rope"])
def test_newer_rope_with_a_scaling_rule_is_read(name: str, process: EngineProcess, tmp_path: Path) -> None:
    folder = write_family_folder(tmp_path / "model", name)
    settings = json.loads((folder / "config.json").read_text())
    rope = settings.pop("rope_scaling")
    rope |= {"rope_type": rope.get("rope_type") or rope.pop("type"), "rope_theta": settings.pop("rope_theta")}
    beside = {"partial_rotary_factor", "original_max_position_embeddings"} & settings.keys()
    rope |= {setting: settings.pop(setting) for setting in beside}
    (folder / "config.json").write_text(json.dumps(settings | {"rope_parameters": rope}))
    expected = logits_of([numpy_engine(folder, whole(name, 3))])
    ours = logits_of([process.load("mlx", whole(name, 3), folder)])
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name", [name for name, family in FAMILY_OF.items() if family in FROM_GGUF and name not in SHORT_OF_MODULES]
)
def test_gguf_matches_the_reference(name: str, process: EngineProcess, tmp_path: Path) -> None:
    path, layers = write_family_gguf(tmp_path / "tiny.gguf", name), tiny_architecture(name).n_layers
    expected = logits_of([numpy_engine(path, whole(name, layers))])
    ours = logits_of([process.load("mlx", shard, path) for shard in cut(name, layers, 1)])
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


def test_family_with_other_tensors_in_gguf_is_refused(process: EngineProcess, tmp_path: Path) -> None:
    path = write_family_gguf(tmp_path / "tiny.gguf", "gemma2")
    with pytest.raises(EngineError, match="runs the family 'gemma2' only from a folder of safetensors; try numpy"):
        process.load("mlx", whole("gemma2", 3), path)


def test_context_ends_at_a_window_that_mlx_lm_leaves_out(process: EngineProcess, tmp_path: Path) -> None:
    engine = process.load("mlx", whole("gemma2", 3), write_family_folder(tmp_path / "model", "gemma2"))
    ring = Ring([engine])
    ring.step(0, 0, IDS)
    ring.step(0, 40, IDS[:24])
    with pytest.raises(EngineError, match="the model's context ends at 64"):
        ring.step(0, 64, [1])
