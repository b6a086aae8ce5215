"""A few seconds of coverage-guided fuzzing for every decoder of foreign bytes; `make fuzz` takes longer."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.support.bus import ROOT

SECONDS = 5
HAS_ATHERIS = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)


@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris has no wheel for this machine")
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    options = [f"-max_total_time={SECONDS}", "-timeout=5", "-rss_limit_mb=1024", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.fuzz", name, *options, "-seed=1", "-max_len=4096", str(corpus)]
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *command],  # a fork's peak memory is its parent's, and pytest has much
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 + SECONDS,
        check=False,
    )
    runs = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert runs, done.stderr[-2000:]
    assert int(runs[1]) > len(TARGETS[name].seeds)
