"""What every test file keeps to: it ends the processes that it started, and times no example of a property."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import settings

from tests.support.templates import children

os.environ["PARALLEL"] = "0"  # tinygrad compiles in its own process: others would stay, and take longer to start

settings.register_profile("no deadline", deadline=None)  # these machines are shared, and a busy one is slow
settings.load_profile("no deadline")

END_S = 3.0  # for a process that is ending already


@pytest.fixture(scope="module", autouse=True)
def _ends_its_processes() -> Iterator[None]:
    """Fail the last test of a file that leaves processes: they would be counted by the tests of later files."""
    before = set(children())
    yield
    left = [child for child in children() if child not in before]
    _, alive = psutil.wait_procs(left, timeout=END_S)
    assert not alive, [child.cmdline() for child in alive]
