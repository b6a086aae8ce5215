"""A ring of stages with keys and values that cannot be copied stores no prefixes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.engines import ROOT


def test_chat_of_forty_tokens_works_with_windows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.ring.mlx_ring", str(tmp_path / "gemma3"), "gemma3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    alone, in_two = (json.loads(done.stdout)[stages] for stages in ("1", "2"))
    assert alone["failures"] == in_two["failures"] == [None, None]
    assert in_two["tokens"] == alone["tokens"]
    assert [len(tokens) for tokens in in_two["tokens"]] == [6, 6]
    assert (alone["stored"], in_two["stored"]) == ([0], [0, 0])
