"""From a Hugging Face hub only a shard's files are fetched, checked and resumed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.shard import Shard, whole
from models.cache import ModelCache
from models.card import HubSource, ModelCard
from models.errors import DownloadCancelled, DownloadError, WeightsError
from models.sources.fetch import fetch
from models.sources.request import Progress
from models.tokenizer import Tokenizer
from models.weights.checkpoint import tensor_names
from models.weights.reader import open_weights
from tests.support.model_servers import FakeServer, fake_hub, ignore, leftovers, tiny_card
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
def card() -> ModelCard:
    return tiny_card(HubSource("tiny/llama", "main"))


def test_gateway_fetches_settings_without_weights(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    folder = fetch(card, None, cache, ignore)
    assert Tokenizer.load(cache.folder(card)).chat_template is not None
    assert folder == cache.folder(card)
    assert leftovers(cache) == []


@pytest.mark.parametrize("shard", [Shard("tiny", 0, 1, 4), Shard("tiny", 1, 3, 4), Shard("tiny", 3, 4, 4)], ids=str)
def test_shard_fetches_only_the_files_it_needs(
    hub: FakeServer, card: ModelCard, cache: ModelCache, repository: Path, shard: Shard
) -> None:
    with open_weights(fetch(card, shard, cache, ignore)) as part, open_weights(repository) as full:
        names = tensor_names(part.config, shard)
        assert set(names) <= part.names() < full.names()
        assert all((part.tensor(name) == full.tensor(name)).all() for name in names)


def test_progress_ends_at_the_total(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    steps: list[Progress] = []
    fetch(card, whole("tiny", 4), cache, steps.append)
    assert steps[-1].done_bytes == steps[-1].total_bytes > 300_000


def test_restart_sends_the_hub_no_request(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    fetch(card, whole("tiny", 4), cache, ignore)
    hub.requests.clear()
    fetch(card, Shard("tiny", 1, 3, 4), cache, ignore)
    fetch(card, None, cache, ignore)
    assert hub.requests == []


def test_damaged_file_is_deleted_and_fetched_again(
    hub: FakeServer, card: ModelCard, cache: ModelCache, repository: Path
) -> None:
    name = "model-00001-of-00004.safetensors"
    hub.faults.instead[name] = bytes((repository / name).stat().st_size)
    with pytest.raises(DownloadError, match="came damaged from the hub and was deleted"):
        fetch(card, whole("tiny", 4), cache, ignore)
    assert not (cache.folder(card) / name).exists()
    hub.faults.instead.clear()
    assert (fetch(card, whole("tiny", 4), cache, ignore) / name).read_bytes() == (repository / name).read_bytes()


def test_truncated_download_is_resumed(hub: FakeServer, card: ModelCard, cache: ModelCache, repository: Path) -> None:
    name = "model-00001-of-00004.safetensors"
    hub.faults.cut[name] = [(repository / name).stat().st_size * 2 // 3]
    folder = fetch(card, whole("tiny", 4), cache, ignore)
    assert (folder / name).read_bytes() == (repository / name).read_bytes()
    assert hub.fetched().count(name) == 2


def test_missing_repository_is_reported(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    hub.faults.status["model info"] = 404
    with pytest.raises(DownloadError, match="the hub has no repository tiny/llama"):
        fetch(card, None, cache, ignore)


def test_hub_error_is_reported_with_its_status(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    hub.faults.status["config.json"] = 403
    with pytest.raises(DownloadError, match="the hub returned status 403 for tiny/llama"):
        fetch(card, None, cache, ignore)


def test_unreachable_hub_is_reported(card: ModelCard, cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="could not be reached"):
        fetch(card, None, cache, ignore)


def test_index_pointing_outside_the_folder_is_rejected(
    card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {"weight_map": {"lm_head.weight": "../../evil.safetensors"}}
    (repository / "model.safetensors.index.json").write_bytes(msgspec.json.encode(index))
    with fake_hub(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(WeightsError, match="which exobus will not open"):
            fetch(card, whole("tiny", 4), cache, ignore)
    assert "evil.safetensors" not in hub.fetched()


def test_unsupported_family_is_rejected_before_its_weights(
    card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "config.json").write_text('{"model_type": "mamba"}')
    with fake_hub(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(WeightsError, match="family 'mamba'"):
            fetch(card, whole("tiny", 4), cache, ignore)
    assert not any(name.startswith("model-") for name in hub.fetched())


def test_cancelled_fetch_ends(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    cancelled = threading.Event()
    with pytest.raises(DownloadCancelled):
        fetch(card, whole("tiny", 4), cache, lambda progress: cancelled.set(), cancelled)
