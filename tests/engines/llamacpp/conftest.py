"""An engine process with shard files that go to a folder of the test run, and a model of each architecture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import EngineProcess
from tests.support.gguf_models import write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def process(models: Path) -> Iterator[EngineProcess]:
    with EngineProcess(EXOBUS_CACHE=str(models)) as process:
        yield process


@pytest.fixture(scope="session")
def llama(models: Path) -> Path:
    """Write a small Llama with exact products, so that a row has the same bits alone and in a chunk."""
    return write_model(models / "llama.gguf", "llama", "Q8_0")
