"""`actors.device_probe`: what is measured is kept for its own precision, and a named engine is not measured at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import device_probe as measure
from cluster.capabilities import EngineCapability
from engines import probe
from engines.precision import PRECISIONS, Precision


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Precision]:
    """The precisions that were probed for, in order; `exact` makes numpy the fastest, `fast` onnx."""
    asked: list[Precision] = []

    def probe_all(names: object, deadline_s: float, precision: Precision) -> tuple[EngineCapability, ...]:
        asked.append(precision)
        onnx_ms = 1.0 if precision == "fast" else 3.0
        return EngineCapability("onnx", ms_per_layer=onnx_ms), EngineCapability("numpy", ms_per_layer=2.0)

    monkeypatch.setattr(probe, "measure", probe_all)
    return asked


def test_each_precision_is_measured_once_and_kept_beside_the_other(tmp_path: Path, probed: list[Precision]) -> None:
    for _ in range(2):
        chosen = [measure.describe("auto", precision, tmp_path).engine for precision in PRECISIONS]
        assert dict(zip(PRECISIONS, chosen, strict=True)) == {"fast": "onnx", "exact": "numpy"}
    assert probed == list(PRECISIONS)


def test_an_engine_that_was_named_is_taken_at_its_word(tmp_path: Path, probed: list[Precision]) -> None:
    found = measure.describe("numpy", "fast", tmp_path)
    assert (found.engine, found.why, probed) == ("numpy", "it was asked for", [])
