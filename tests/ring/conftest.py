"""Fixtures of the ring's tests: a small model, and the tokens that it generates unsplit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.shard import whole
from engines.numpy.engine import NumpyEngine
from tests.support.engines import Ring
from tests.support.models import write_tiny_llama
from tests.support.ring.stage_ring import N_LAYERS


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), n_layers=N_LAYERS)


@pytest.fixture(scope="session")
def reference(weights: Path) -> Ring:
    engine = NumpyEngine()
    engine.load(whole("tiny", N_LAYERS), weights)
    return Ring([engine])
