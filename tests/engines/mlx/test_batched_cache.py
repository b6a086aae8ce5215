"""A ragged batch is one pass over the weights, and each session gets its own output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.shard import whole
from engines.numpy.engine import NumpyEngine
from tests.support.engines import PROMPT, ROOT, EngineProcess, cut
from tests.support.ring.ragged_batches import Sessions, check_many_batches

LAYERS = 4


@pytest.fixture(scope="module")
def sliding() -> Any:
    """Run `tests.support.ring.pipeline`."""
    command = [sys.executable, "-m", "tests.support.ring.pipeline"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_ragged_batch_is_one_pass_with_plain_caches(sliding: Any) -> None:
    assert sliding["passes"] == {"plain": 1, "windows": 3}


@pytest.mark.parametrize("cuts", [(), (2,)], ids=str)
def test_ragged_batches_match_the_reference_for_each_session(
    cuts: tuple[int, ...], process: EngineProcess, tiny: Path
) -> None:
    reference = NumpyEngine()
    reference.load(whole("tiny", LAYERS), tiny)
    check_many_batches(
        Sessions([process.load("mlx", shard, tiny) for shard in cut("tiny", LAYERS, *cuts)], reference), PROMPT
    )
