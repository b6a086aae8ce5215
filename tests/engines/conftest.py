"""Fixtures for the tests of every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.numpy.engine import NumpyEngine
from tests.support.engines import EngineProcess, numpy_engine
from tests.support.models import write_tiny_llama


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    with EngineProcess() as process:
        yield process


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shared_engine(tiny: Path) -> NumpyEngine:
    return numpy_engine(tiny)


@pytest.fixture
def engine(shared_engine: NumpyEngine) -> NumpyEngine:
    for slot in range(8):
        shared_engine.release(slot)
    return shared_engine
