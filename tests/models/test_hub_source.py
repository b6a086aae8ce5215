"""Fetching from a Hugging Face hub: just a shard's files, checked, resumed, and refused with one sentence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.shard import Shard, whole
from models.cache import ModelCache, Progress
from models.card import HubSource, ModelCard
from models.errors import WeightsError
from models.sources import DownloadCancelled, DownloadError, fetch
from models.tokenizer import Tokenizer
from models.weights import open_weights, shard_names
from tests.support.hub import FakeServer, fake_hub, ignore, leftovers, tiny_card
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


def test_a_gateway_gets_settings_and_no_weights(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    folder = fetch(card, None, cache, ignore)
    assert Tokenizer.load(cache.folder(card)).chat_template is not None
    assert folder == cache.folder(card)
    assert leftovers(cache) == []


@pytest.mark.parametrize("shard", [Shard("tiny", 0, 1, 4), Shard("tiny", 1, 3, 4), Shard("tiny", 3, 4, 4)], ids=str)
def test_a_shard_gets_exactly_the_files_that_hold_it(
    hub: FakeServer, card: ModelCard, cache: ModelCache, repository: Path, shard: Shard
) -> None:
    with open_weights(fetch(card, shard, cache, ignore)) as part, open_weights(repository) as full:
        names = shard_names(part.config, shard)
        assert set(names) <= part.names() < full.names()
        assert all((part.tensor(name) == full.tensor(name)).all() for name in names)


def test_progress_ends_at_the_total(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    steps: list[Progress] = []
    fetch(card, whole("tiny", 4), cache, steps.append)
    assert steps[-1].done_bytes == steps[-1].total_bytes > 300_000


def test_a_restart_asks_the_hub_nothing(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    fetch(card, whole("tiny", 4), cache, ignore)
    hub.requests.clear()
    fetch(card, Shard("tiny", 1, 3, 4), cache, ignore)
    fetch(card, None, cache, ignore)
    assert hub.requests == []


def test_wrong_bytes_are_deleted_and_the_next_try_mends_them(
    hub: FakeServer, card: ModelCard, cache: ModelCache, repository: Path
) -> None:
    name = "model-00001-of-00004.safetensors"
    hub.faults.instead[name] = bytes((repository / name).stat().st_size)
    with pytest.raises(DownloadError, match="came damaged from the hub and was deleted"):
        fetch(card, whole("tiny", 4), cache, ignore)
    assert not (cache.folder(card) / name).exists()
    hub.faults.instead.clear()
    assert (fetch(card, whole("tiny", 4), cache, ignore) / name).read_bytes() == (repository / name).read_bytes()


def test_a_body_cut_short_is_gone_on_with(
    hub: FakeServer, card: ModelCard, cache: ModelCache, repository: Path
) -> None:
    name = "model-00001-of-00004.safetensors"
    hub.faults.cut[name] = [(repository / name).stat().st_size * 2 // 3]
    folder = fetch(card, whole("tiny", 4), cache, ignore)
    assert (folder / name).read_bytes() == (repository / name).read_bytes()
    assert hub.fetched().count(name) == 2


def test_a_repository_that_is_not_there_is_said_so(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    hub.faults.status["model info"] = 404
    with pytest.raises(DownloadError, match="the hub has no repository tiny/llama"):
        fetch(card, None, cache, ignore)


def test_a_refusal_of_the_hub_is_said_with_its_status(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    hub.faults.status["config.json"] = 403
    with pytest.raises(DownloadError, match="the hub answered 403 for tiny/llama"):
        fetch(card, None, cache, ignore)


def test_a_hub_that_cannot_be_reached_is_said_so(
    card: ModelCard, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="could not be reached"):
        fetch(card, None, cache, ignore)


def test_an_index_that_points_outside_the_folder_is_refused(
    card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {"weight_map": {"lm_head.weight": "../../evil.safetensors"}}
    (repository / "model.safetensors.index.json").write_bytes(msgspec.json.encode(index))
    with fake_hub(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(WeightsError, match="which exobus will not open"):
            fetch(card, whole("tiny", 4), cache, ignore)
    assert "evil.safetensors" not in hub.fetched()


def test_a_repository_of_another_family_is_refused_before_its_weights_come(
    card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "config.json").write_text('{"model_type": "mamba"}')
    with fake_hub(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(WeightsError, match="family 'mamba'"):
            fetch(card, whole("tiny", 4), cache, ignore)
    assert not any(name.startswith("model-") for name in hub.fetched())


def test_a_cancelled_fetch_ends(hub: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    cancelled = threading.Event()
    with pytest.raises(DownloadCancelled):
        fetch(card, whole("tiny", 4), cache, lambda progress: cancelled.set(), cancelled)
