"""What is MLX's own: ghosts, and the process that imports mlx_lm. Its answers are checked in `test_engines_agree`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.shard import Shard, whole
from engines.activations import rounded
from engines.engine import Chunk, EngineError
from engines.mlx.blas import SYSTEM_LIBRARY
from engines.numpy.engine import NumpyEngine
from models.config import Dtype
from tests.support.batches import Sessions, live_a_life
from tests.support.engines import ROOT, EngineProcess, Ring, cut
from tests.support.models import write_tiny_llama

PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
LAYERS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    with EngineProcess() as process:
        yield process


def test_loading_does_not_cost_the_process_its_open_files(tiny: Path) -> None:
    with EngineProcess() as process:
        soft, hard = process.open_file_limits()
        process.load("mlx", whole("tiny", LAYERS), tiny)
        soft_after, hard_after = process.open_file_limits()
    assert soft_after == min(soft, hard_after)
    assert hard_after == hard or hard_after == 4096, "mlx_lm sets 4096 and a plain user cannot raise it again"


def test_importing_the_engine_does_not_import_mlx_lm() -> None:
    program = "import sys, engines.registry as r; r.create('mlx'); sys.exit('mlx_lm' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX comes with a fast BLAS")
def test_a_blas_of_the_system_takes_the_place_of_the_slow_one_in_mlxs_wheel(tmp_path: Path) -> None:
    own = next(Path(str(file.locate())) for file in files("mlx-cpu") or [] if file.name.startswith("libblas"))
    # Under another name inside, for the linker would take two libraries of one name for one.
    library = tmp_path / SYSTEM_LIBRARY
    library.write_bytes(own.read_bytes().replace(own.name.encode(), own.name[::-1].encode()))
    environment = os.environ | {"LD_LIBRARY_PATH": f"{tmp_path}:{own.parent}", "LD_DEBUG": "bindings"}
    program = [sys.executable, "-c", "import engines.mlx.engine"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    bound = [line for line in done.stderr.splitlines() if "`cblas_sgemm'" in line and "libmlx.so" in line]
    assert bound
    assert all(f" to {library} " in line for line in bound)


@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (1, 2, 3)], ids=str)
def test_ghost_layers_keep_positions_when_a_split_slot_is_set_back(
    cuts: tuple[int, ...], process: EngineProcess, tiny: Path
) -> None:
    unsplit = Ring([process.load("mlx", whole("tiny", LAYERS), tiny)])
    split = Ring([process.load("mlx", shard, tiny) for shard in cut("tiny", LAYERS, *cuts)])
    for ring in (unsplit, split):
        ring.step(0, 0, PROMPT)
        for stage in ring.stages:
            stage.truncate(0, 5)
    after = [(5, [7, 8, 9]), (8, [10]), (9, [11, 12])]
    for position, ids in after:
        ours, theirs = split.step(0, position, ids), unsplit.step(0, position, ids)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_chunks_that_want_no_logits_fill_the_slot_all_the_same(process: EngineProcess, tiny: Path) -> None:
    ring = Ring([process.load("mlx", shard, tiny) for shard in cut("tiny", LAYERS, 2)])
    assert ring.step(0, 0, PROMPT[:6], wants_logits=False).size == 0
    in_chunks = ring.step(0, 6, PROMPT[6:])
    np.testing.assert_allclose(in_chunks, ring.step(1, 0, PROMPT), atol=2e-5)


def test_a_stage_that_decodes_for_long_does_not_grow(process: EngineProcess, tmp_path: Path) -> None:
    """A ghost's cache that nobody evaluated would hang on to every step's graph."""
    deep = write_tiny_llama(tmp_path, n_layers=30, hidden=32)
    stage = process.load("mlx", Shard("deep", 1, 2, 30), deep)
    row = np.full((1, 32), 0.1, np.float32)
    grown = []
    for slot in (0, 1):
        stage.forward([Chunk(slot, 0, np.repeat(row, 257, axis=0))])
        before = process.resident_bytes()
        for position in range(257, 510):
            stage.forward([Chunk(slot, position, row)])
        grown.append(process.resident_bytes() - before)
    assert grown[1] < 2 << 20


@pytest.fixture(scope="module")
def sliding() -> Any:
    """What `tests.support.pipeline` found."""
    command = [sys.executable, "-m", "tests.support.pipeline"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_ghosts_keep_the_masks_of_sliding_windows_true_at_every_cut(sliding: Any) -> None:
    assert set(sliding["differences"]) == {"1", "2", "3", "4", "5"}
    assert max(sliding["differences"].values()) < 1e-4


def test_a_ragged_batch_is_one_pass_except_in_families_with_caches_of_their_own(sliding: Any) -> None:
    assert sliding["passes"] == {"plain": 1, "windows": 3}


def test_a_stage_refuses_tokens_in_place_of_hidden_states(process: EngineProcess, tiny: Path) -> None:
    stage = process.load("mlx", Shard("tiny", 1, 4, LAYERS), tiny)
    with pytest.raises(EngineError, match="wants hidden states"):
        stage.forward([Chunk(0, 0, np.array([1, 2], np.int32))])


@pytest.mark.parametrize("cuts", [(), (2,)], ids=str)
def test_a_ragged_batch_gives_each_session_the_references_answers(
    cuts: tuple[int, ...], process: EngineProcess, tiny: Path
) -> None:
    reference = NumpyEngine()
    reference.load(whole("tiny", LAYERS), tiny)
    live_a_life(Sessions([process.load("mlx", shard, tiny) for shard in cut("tiny", LAYERS, *cuts)], reference), PROMPT)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hidden_states_are_rounded_as_frames_round_them(dtype: Dtype, process: EngineProcess, tmp_path: Path) -> None:
    stage = process.load("mlx", Shard("tiny", 1, 2, LAYERS), write_tiny_llama(tmp_path, dtype=dtype))
    exact = process.load("mlx", Shard("tiny", 1, 2, LAYERS), with_dtype(tmp_path, "float32"))
    rows = np.random.default_rng(0).standard_normal((33, 64), np.float32)
    rows[5] = 1e6
    ours, theirs = (engine.forward([Chunk(0, 0, rows)])[0] for engine in (stage, exact))
    assert stage.activations() == dtype
    np.testing.assert_array_equal(ours, rounded(theirs, dtype))


def test_a_copy_of_positions_takes_what_the_engine_says(process: EngineProcess, tiny: Path) -> None:
    stage = process.load("mlx", Shard("tiny", 1, 3, LAYERS), tiny)
    stage.forward([Chunk(0, 0, np.ones((9, 64), np.float32))])
    assert stage.save(0, 2, 7).nbytes == 5 * stage.position_bytes() == 5 * 2 * 2 * 2 * 16 * 4


def with_dtype(folder: Path, dtype: Dtype) -> Path:
    """The same weights in a folder whose configuration names another dtype."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}))
    return folder
