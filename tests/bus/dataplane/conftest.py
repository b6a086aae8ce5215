"""The run folder of the endpoints of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bus import run_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as path:
        yield path
