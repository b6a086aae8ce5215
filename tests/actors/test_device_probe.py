"""Measurements of `actors.device_probe`: kept for each precision, and skipped for an engine that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import device_probe
from cluster.capabilities import EngineCapability
from engines import probe
from engines.settings import PRECISIONS, Precision


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Precision]:
    """Record the precisions that are probed, in order; `exact` makes numpy the fastest, `fast` onnx."""
    asked: list[Precision] = []

    def probe_all(names: object, timeout_s: float, precision: Precision) -> tuple[EngineCapability, ...]:
        asked.append(precision)
        onnx_ms = 3.0 if precision == "exact" else 1.0
        return EngineCapability("onnx", ms_per_layer=onnx_ms), EngineCapability("numpy", ms_per_layer=2.0)

    monkeypatch.setattr(probe, "measure", probe_all)
    return asked


def test_each_precision_is_measured_once_and_kept(tmp_path: Path, probed: list[Precision]) -> None:
    for _ in range(2):
        chosen = [device_probe.describe("auto", precision, tmp_path).engine for precision in PRECISIONS]
        assert dict(zip(PRECISIONS, chosen, strict=True)) == {"fast": "onnx", "exact": "numpy", "invariant": "onnx"}
    assert probed == list(PRECISIONS)


@pytest.mark.parametrize("cache", ["file", "file/models", "dangling"])
def test_measurement_that_cannot_be_kept_still_counts(
    tmp_path: Path, probed: list[Precision], capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    for _ in range(2):
        assert device_probe.describe("auto", "fast", tmp_path / cache).engine == "onnx"
    assert probed == ["fast", "fast"]
    assert "the engines will be measured again" in capsys.readouterr().err


def test_measurement_is_kept_in_the_second_folder_if_need_be(tmp_path: Path, probed: list[Precision]) -> None:
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        assert device_probe.describe("auto", "fast", tmp_path / "file", tmp_path / "data").engine == "onnx"
    assert probed == ["fast"]


def test_named_engine_is_not_measured(tmp_path: Path, probed: list[Precision]) -> None:
    found = device_probe.describe("numpy", "fast", tmp_path)
    assert (found.engine, found.why, probed) == ("numpy", "it was asked for", [])
