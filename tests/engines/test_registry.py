"""Engines are created by name, and an error names what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engines.errors import EngineError
from engines.registry import create
from tests.support.engines import ROOT


def test_unknown_engine_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(EngineError, match="no engine 'cuda'; choose one of mlx, llamacpp, tinygrad, onnx, numpy"):
        create("cuda")


@pytest.mark.parametrize(("name", "package"), [("mlx", "mlx_lm"), ("tinygrad", "tinygrad")])
def test_missing_extra_names_its_install_command(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=rf"engine {name} needs {package}: pip install 'exobus\[{name}\]'"):
        create(name)


def test_missing_required_package_asks_to_reinstall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="engine onnx needs onnxruntime: install exobus again"):
        create("onnx")


def test_unknown_precision_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(EngineError, match="no precision 'quick'; choose one of fast, exact, invariant"):
        create("numpy", "quick")


def test_llamacpp_is_never_exact() -> None:
    with pytest.raises(EngineError, match=r"llamacpp computes as llama.cpp does, so it is never exact; choose another"):
        create("llamacpp", "exact")


def test_registry_imports_no_engine() -> None:
    program = "import sys, engines.registry; sys.exit(bool({'tinygrad', 'mlx'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
