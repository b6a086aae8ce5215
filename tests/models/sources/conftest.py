"""A hub on loopback with the tiny model in four weights files, its card, and an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.cache import ModelCache
from models.card import HubSource, ModelCard
from tests.support.model_servers import FakeServer, fake_hub, tiny_card
from tests.support.models import write_tiny_llama


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "repository", n_layers=4, tie=False, dtype="bfloat16", shards=4)


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with fake_hub(repository) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(repository.parent / "hf"))
        yield server


@pytest.fixture
def hub_card() -> ModelCard:
    return tiny_card(HubSource("tiny/llama", "main"), tied=False)
