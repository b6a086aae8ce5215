"""Engines are measured on a model in child processes; one that cannot run it says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from engines.model_probe import measure
from models.weights.gguf.header import read_header
from tests.support.gguf_models import write_model


def test_engines_are_timed_and_failures_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = write_model(tmp_path / "model.gguf", "mistral3", "Q8_0")
    (ours, theirs, unknown), others = measure(("onnx", "llamacpp", "abacus"), "fast", path, read_header(path), 60)
    assert 0 <= others <= 1
    assert ours.token_ms is None
    assert "'mistral3'" in ours.detail, "exobus has no family of that name"
    assert 0 < (theirs.decode_ms or 0) < 1000
    assert 0 < (theirs.prompt_ms or 0) < 1000
    assert unknown.detail.startswith("there is no engine 'abacus'")


def test_slow_engine_is_stopped_and_reported(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q8_0")
    (found,), _ = measure(("numpy",), "fast", path, read_header(path), 0.01)
    assert (found.token_ms, found.detail) == (None, "took longer than 0.01 s")


def test_share_of_other_programs_is_measured(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q8_0")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count() or 1)]
    try:
        assert measure(("abacus",), "fast", path, read_header(path), 60).others > 0.3
    finally:
        for process in busy:
            process.kill()
            process.wait()
