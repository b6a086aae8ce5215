"""Which engine a process makes for the model that it is to load, and when that is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from actors import engine_choice
from actors.engine_choice import engine_for
from bus.messages import EngineLoad
from cluster.capabilities import EngineCapability
from cluster.shard import Shard, whole
from cluster.topology import RecordNumber
from common.config import NodeConfig
from engines.choice import ModelSpeed
from engines.model_probe import Measured
from tests.support.gguf_models import FAMILIES, write_model
from tests.support.models import TinyShape, write_tiny_gguf, write_tiny_llama

MEASURED = (
    EngineCapability("onnx", ms_per_layer=1.0),
    EngineCapability("llamacpp", ms_per_layer=1.2),
    EngineCapability("numpy", ms_per_layer=9.0),
    EngineCapability("mlx", detail="it is not installed"),
)
SPEEDS = {"onnx": (10.0, 3.0), "llamacpp": (8.0, 2.0)}
NUMBER = RecordNumber(1, 1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Record which engines are measured together; llama.cpp is the fastest. No model is too small.

    The machine is busy the first time, and stays so.
    """
    asked: list[tuple[str, ...]] = []

    def measure(names: Sequence[str], *_: object) -> Measured:
        asked.append(tuple(names))
        return Measured(tuple(ModelSpeed(name, *SPEEDS[name]) for name in names), others=0.9 if len(asked) == 1 else 0)

    monkeypatch.setattr(engine_choice, "measure", measure)
    monkeypatch.setattr(psutil, "cpu_percent", lambda _: 90.0)
    monkeypatch.setattr(engine_choice, "SMALL", 0)
    return asked


def config(folder: Path, **settings: object) -> NodeConfig:
    fixed: dict[str, object] = {"node_id": "a" * 16, "name": "ada", "incarnation": 1}
    folders = {name: str(folder / name) for name in ("run_dir", "data_dir", "cache_dir")}
    return msgspec.convert({**fixed, **folders, **settings}, NodeConfig)


def load_of(path: Path, shard: Shard, engine: str = "onnx", precision: str = "fast") -> EngineLoad:
    return EngineLoad(engine, "i", 1, shard, str(path), "p", NUMBER, precision=precision, engines=MEASURED)


def model(folder: Path, family: str = "llama", kind: str = "Q8_0") -> EngineLoad:
    path = write_model(folder / f"{family}-{kind}.gguf", family, kind)
    return load_of(path, whole("model", FAMILIES[family].n_layers))


def test_model_is_measured_once(tmp_path: Path, measured: list[tuple[str, ...]]) -> None:
    load, settings = model(tmp_path), config(tmp_path)
    for _ in range(2):
        engine, why = engine_for(load, settings)
        assert engine == "llamacpp"
        assert "onnx 10.0 and 3.00 ms; llamacpp 8.0 and 2.00 ms" in why
    assert measured == [("onnx", "llamacpp")], "numpy is far slower"


def test_what_changes_the_speed_is_measured_again(
    tmp_path: Path, measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, load = config(tmp_path), model(tmp_path)
    changed = [load, model(tmp_path, kind="Q4_0"), model(tmp_path, family="qwen3")]
    for one in [*changed, msgspec.structs.replace(load, precision="exact")]:
        engine_for(one, settings)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    engine_for(load, settings)
    assert len(measured) == 5


def test_speeds_are_kept_in_the_data_folder_if_need_be(tmp_path: Path, measured: list[tuple[str, ...]]) -> None:
    (tmp_path / "file").write_text("in the way")
    settings, load = config(tmp_path, cache_dir=str(tmp_path / "file" / "models")), model(tmp_path)
    assert [engine_for(load, settings).engine for _ in range(2)] == ["llamacpp", "llamacpp"]
    assert len(measured) == 1


def test_model_is_measured_again_on_a_quiet_machine(
    tmp_path: Path, measured: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    load, settings = model(tmp_path), config(tmp_path)
    for busy, times in ((90.0, 1), (90.0, 1), (3.0, 2), (3.0, 2)):
        monkeypatch.setattr(psutil, "cpu_percent", lambda _, busy=busy: busy)
        engine_for(load, settings)
        assert len(measured) == times


@pytest.mark.parametrize("content", ["", "{}", '{"speeds":[]}', '{"speeds":[{"name":"onnx","decode_ms":1}]}'])
def test_damaged_file_is_measured_again(tmp_path: Path, measured: list[tuple[str, ...]], content: str) -> None:
    settings, load = config(tmp_path), model(tmp_path)
    engine_for(load, settings)
    (kept,) = (tmp_path / "cache_dir" / engine_choice.FOLDER).iterdir()
    kept.write_text(content)
    assert engine_for(load, settings).engine == "llamacpp"
    assert len(measured) == 2


def test_engine_that_was_asked_for_is_taken(tmp_path: Path, measured: list[tuple[str, ...]]) -> None:
    load = msgspec.structs.replace(model(tmp_path), engine="numpy")
    assert engine_for(load, config(tmp_path, engine="numpy")) == ("numpy", "it was asked for")
    assert not measured


def test_part_that_llamacpp_cannot_cut_stays_with_the_other(tmp_path: Path, measured: list[tuple[str, ...]]) -> None:
    load = model(tmp_path, family="smollm3")
    odd, even = (msgspec.structs.replace(load, shard=Shard("model", 0, end, 10)) for end in (3, 4))
    assert engine_for(odd, config(tmp_path)).engine == "onnx"
    assert not measured, "there is nothing to compare"
    assert engine_for(even, config(tmp_path)).engine == "llamacpp"


def test_only_llamacpp_runs_what_exobus_does_not_describe(tmp_path: Path, measured: list[tuple[str, ...]]) -> None:
    assert engine_for(model(tmp_path, family="cohere2"), config(tmp_path)) == (
        "llamacpp",
        "no other engine runs this model",
    )
    assert not measured


def test_small_model_is_not_measured(tmp_path: Path) -> None:
    engine, why = engine_for(model(tmp_path), config(tmp_path))
    assert (engine, why) == ("onnx", "of this machine's engines with room for the model, it is the fastest")


@pytest.mark.usefixtures("measured")
def test_mlx_runs_folders_that_no_other_engine_has(tmp_path: Path) -> None:
    llama, gguf = write_tiny_llama(tmp_path / "llama"), write_tiny_gguf(tmp_path / "llama.gguf")
    mixtral, missing = tmp_path / "mixtral", tmp_path / "missing.gguf"
    mixtral.mkdir()
    (mixtral / "config.json").write_text(json.dumps(TinyShape().config("float32") | {"model_type": "mixtral"}))
    loads = [load_of(path, whole("model", 4)) for path in (llama, gguf, mixtral, missing)]
    assert [engine_for(load, config(tmp_path)).engine for load in loads] == ["onnx", "llamacpp", "mlx", "onnx"]
