"""`tests.bench.shapes`: random models that engines run, with the types of real ones, and their figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.capabilities import DeviceCapabilities
from cluster.shard import whole
from engines.engine import Chunk
from engines.registry import create
from models.weights.gguf.header import read_header
from models.weights.gguf.tensors import read_bytes
from tests.bench.shapes import measure
from tests.bench.shapes.measure import TURNS, Side
from tests.bench.shapes.random_gguf import MAIN_TYPES, Shape, random_gguf
from tests.bench.shapes.worker import BARE

TINY = Shape("tiny", 8, 256, 512, 8, 4, 512, tied=True)


@pytest.mark.parametrize("quantization", MAIN_TYPES)
def test_engines_run_random_models(quantization: str, tmp_path: Path) -> None:
    path = random_gguf(TINY, quantization, tmp_path)
    for name in ("onnx", "llamacpp"):
        engine = create(name)
        engine.load(whole("tiny", TINY.layers), path)
        (logits,) = engine.forward([Chunk(0, 0, np.arange(5, dtype=np.int32), 1)])
        engine.close()
        assert np.isfinite(logits).all()
        assert logits.std() > 0


def test_mixture_stores_half_of_the_layers_in_more_bits(tmp_path: Path) -> None:
    tensors = read_header(random_gguf(TINY, "Q4_K_M", tmp_path)).tensors
    kinds = [tensors[f"blk.{layer}.ffn_down.weight"].kind.name for layer in range(TINY.layers)]
    assert kinds == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert tensors["token_embd.weight"].kind.name == "Q6_K"


def test_layers_have_different_bytes(tmp_path: Path) -> None:
    path = random_gguf(TINY, "Q4_0", tmp_path)
    tensors = read_header(path).tensors
    layers = [read_bytes(path, tensors[f"blk.{layer}.ffn_up.weight"]).tobytes() for layer in range(TINY.layers)]
    assert len(set(layers)) == TINY.layers


def test_each_side_takes_its_turns(tmp_path: Path) -> None:
    path = random_gguf(TINY, "Q8_0", tmp_path)
    for name in (BARE, "llamacpp"):
        side = Side(name, path, 1)
        turns = [side.turn(name) for name in TURNS]
        side.close()
        assert all(turn.per_s > 0 and turn.per_cpu_s > 0 for turn in turns)
        assert side.loaded.resident > path.stat().st_size


def test_first_half_of_a_model_is_loaded(tmp_path: Path) -> None:
    side = Side("llamacpp", random_gguf(TINY, "Q8_0", tmp_path), 1, (0, TINY.layers // 2))
    side.close()
    assert side.loaded.seconds > 0


def test_model_without_room_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(measure, "FOLDER", tmp_path)
    monkeypatch.setattr(measure, "ROOM", 1e12)
    monkeypatch.setattr(measure, "describe", lambda *_: DeviceCapabilities())
    assert measure.measure("tiny") == []
    assert "tiny_q4_k_m is left out" in capsys.readouterr().out


def test_every_figure_can_be_asked_for() -> None:
    names = [name for shape in ("135m", "1b", "8b") for name in measure.names(shape)]
    assert len(names) == len(set(names))
    assert {"shapes_135m_q4_1_decode_1", "shapes_1b_q4_k_m_load_s", "shapes_8b_q8_0_over_file_gib"} <= set(names)
