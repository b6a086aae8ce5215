"""tinygrad's CPU device gets a clang on every machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.shard import whole
from engines.errors import EngineError
from engines.numpy.engine import NumpyEngine
from engines.tinygrad.clang import ensure_clang
from tests.support.engines import PROMPT, EngineProcess, Ring
from tests.support.models import write_tiny_llama

TINY = whole("tiny", 4)


def test_machine_without_a_compiler_runs_the_engine(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny")
    # No program can be found, and no kernel of an earlier run.
    with EngineProcess(PATH="", CC="", XDG_CACHE_HOME=str(tmp_path), DEV="CPU") as process:
        made = Ring([process.load("tinygrad", TINY, path)]).generate(PROMPT, 3)
    reference = NumpyEngine()
    reference.load(TINY, path)
    assert made.tokens == Ring([reference]).generate(PROMPT, 3).tokens


@pytest.mark.parametrize("compiler", ["", "gcc", "/usr/bin/cc"])
def test_other_compiler_is_replaced_by_a_clang(compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ensure_clang()
    chosen = Path(os.environ["CC"])
    version = subprocess.run([chosen, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert "clang version" in version.stdout
    assert [file.name for file in chosen.parent.iterdir()] == [chosen.name]


def test_unwritable_cache_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(EngineError, match=r"file/exobus/zig-clang cannot be written .*; set CC to a clang"):
        ensure_clang()


def test_clang_named_by_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/opt/llvm/bin/clang-21")
    ensure_clang()
    assert os.environ["CC"] == "/opt/llvm/bin/clang-21"
