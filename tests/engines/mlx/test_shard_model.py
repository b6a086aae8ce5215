"""Loading leaves the process as it was, and wrong inputs are rejected."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.shard import Shard, whole
from engines.engine import Chunk
from engines.errors import EngineError
from tests.support.engines import ROOT, EngineProcess
from tests.support.models import write_tiny_llama

LAYERS = 4


def test_loading_keeps_the_limit_of_open_files(tiny: Path) -> None:
    with EngineProcess() as process:
        soft, hard = process.open_file_limits()
        process.load("mlx", whole("tiny", LAYERS), tiny)
        soft_after, hard_after = process.open_file_limits()
    assert soft_after == min(soft, hard_after)
    assert hard_after == hard or hard_after == 4096, "mlx_lm sets 4096 and a plain user cannot raise it again"


def test_creating_the_engine_does_not_import_mlx_lm() -> None:
    program = "import sys, engines.registry as r; r.create('mlx'); sys.exit('mlx_lm' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_later_stage_rejects_token_ids(process: EngineProcess, tiny: Path) -> None:
    stage = process.load("mlx", Shard("tiny", 1, 4, LAYERS), tiny)
    with pytest.raises(EngineError, match="expects hidden states"):
        stage.forward([Chunk(0, 0, np.array([1, 2], np.int32))])


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantization_that_the_weights_lack_is_refused(process: EngineProcess, tmp_path: Path, method: str) -> None:
    config = write_tiny_llama(tmp_path) / "config.json"
    quantization = {"quant_method": method, "bits": 4, "group_size": 64}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": quantization}))
    with pytest.raises(EngineError, match="mlx-lm cannot load this model"):
        process.load("mlx", whole("tiny", LAYERS), tmp_path)


def test_copy_takes_the_bytes_of_its_positions(process: EngineProcess, tiny: Path) -> None:
    stage = process.load("mlx", Shard("tiny", 1, 3, LAYERS), tiny)
    stage.forward([Chunk(0, 0, np.ones((9, 64), np.float32))])
    assert stage.save(0, 2, 7).nbytes == 5 * stage.position_bytes() == 5 * 2 * 2 * 2 * 16 * 4
