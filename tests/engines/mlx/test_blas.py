"""A fast BLAS replaces the slow one in MLX's wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import pytest

from engines.mlx.blas import SYSTEM_LIBRARY
from tests.support.engines import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX comes with a fast BLAS")
def test_system_blas_replaces_the_one_in_the_wheel(tmp_path: Path) -> None:
    own = next(Path(str(file.locate())) for file in files("mlx-cpu") or [] if file.name.startswith("libblas"))
    # Renamed inside, since the linker would take two libraries of one name for the same.
    library = tmp_path / SYSTEM_LIBRARY
    library.write_bytes(own.read_bytes().replace(own.name.encode(), own.name[::-1].encode()))
    environment = os.environ | {"LD_LIBRARY_PATH": f"{tmp_path}:{own.parent}", "LD_DEBUG": "bindings"}
    program = [sys.executable, "-c", "import engines.mlx.engine"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    bound = [line for line in done.stderr.splitlines() if "`cblas_sgemm'" in line and "libmlx.so" in line]
    assert bound
    assert all(f" to {library} " in line for line in bound)
