"""`common.python_child` with real children, started in a folder with files that have the names of modules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common.privacy import TELEMETRY_OFF
from common.python_child import PACKAGE_ROOT, child_environment, module_command
from models.tokenizers.gguf_tokenizer import REFUSED

TRAPS = ("json.py", "models.py", "common/__init__.py")


@pytest.mark.parametrize("pythonpath", ["", ":", "/nowhere:"])
def test_child_imports_nothing_from_current_folder(tmp_path: Path, pythonpath: str) -> None:
    for name in TRAPS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a file of the current folder was imported')")
    child = subprocess.run(
        module_command("models.tokenizers.gguf_tokenizer", "nowhere.gguf", "."),
        cwd=tmp_path,
        env=child_environment({"PYTHONPATH": pythonpath}),
        capture_output=True,
        text=True,
    )
    assert child.returncode == REFUSED
    assert "nowhere.gguf" in child.stderr
    assert "was imported" not in child.stderr


def test_checkout_is_added_to_the_path_once() -> None:
    once = child_environment({"PYTHONPATH": "/a:"})
    assert once["PYTHONPATH"] == f"{PACKAGE_ROOT}:/a"
    assert child_environment(once) == once


def test_child_keeps_its_environment_without_telemetry() -> None:
    environment = child_environment({"LANG": "C", "ORT_DISABLE_TELEMETRY": "0"})
    assert environment["LANG"] == "C"
    assert TELEMETRY_OFF.items() <= environment.items()
