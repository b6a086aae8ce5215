"""A node that is started in a folder of files with the names of modules runs none of them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from common.python_child import child_environment
from models.catalogue import DEFAULT_MODEL
from tests.support.models import default_model_path
from tests.support.nodes import NodeProcess, unmeasured_cache

SCRIPT = Path(sys.executable).parent / "exobus"
OURS = ("actors", "bus", "cluster", "common", "discovery", "engines", "gateway", "models", "ring")
LIBRARIES = ("msgspec", "numpy", "onnxruntime", "tokenizers", "zmq")
STANDARD = ("json", "secrets", "sitecustomize", "token")
PORTS = ("--api-port", "0", "--bus-port", "0", "--join-port", "0")
QUESTION = {
    "model": DEFAULT_MODEL,
    "temperature": 0,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


def set_traps(folder: Path, names: tuple[str, ...]) -> Path:
    """Put a module and a package of each name into a folder; return the file that they write when they run."""
    ran = folder / "ran.txt"
    trap = f"open({str(ran)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit('trap')\n"
    for number, name in enumerate(names):
        file = folder / (f"{name}.py" if number % 2 else f"{name}/__init__.py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(trap)
    return ran


@pytest.mark.parametrize("how", ["script", "module"])
def test_node_runs_no_code_of_current_folder(tmp_path: Path, how: str) -> None:
    default_model_path()
    if how == "script" and not SCRIPT.exists():
        pytest.skip("exobus is not installed in this environment")
    start = [str(SCRIPT)] if how == "script" else [sys.executable, "-m", "cli"]
    traps = tmp_path / "traps"
    traps.mkdir()
    # `python -m cli` finds the package itself in the current folder, and with it what Python imports before us
    ran = set_traps(traps, OURS + LIBRARIES + (("cli", *STANDARD) if how == "script" else ()))
    settings = {"EXOBUS_CACHE": str(unmeasured_cache(tmp_path / "cache"))}
    if how == "module":
        settings["PYTHONPATH"] = child_environment({})["PYTHONPATH"]
    engine = "auto" if how == "script" else "onnx"  # once with the children that measure all engines
    arguments = [*PORTS, "--precision", "exact", "--engine", engine]
    with ExitStack() as running:
        node = NodeProcess(tmp_path / "node", arguments, settings, start=start, folder=traps)
        running.callback(node.stop)
        node.ready()
        answer = httpx.post(f"{node.api}/v1/chat/completions", json=QUESTION, timeout=120.0)
    assert "Paris" in answer.text
    assert not ran.exists(), ran.read_text()


def test_traps_are_run_by_an_unprotected_child(tmp_path: Path) -> None:
    """This shows that the test above can fail."""
    ran = set_traps(tmp_path, ("models", "msgspec"))
    subprocess.run([sys.executable, "-m", "models"], cwd=tmp_path, check=False, capture_output=True)
    assert ran.read_text() == "models\n"
