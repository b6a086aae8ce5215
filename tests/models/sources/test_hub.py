"""From a Hugging Face hub only a shard's files are fetched and checked, all of one commit of the card's source."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from cluster.shard import Shard, whole
from models.cache import ModelCache
from models.card import HubSource, ModelCard
from models.errors import DownloadCancelled, DownloadError, WeightsError, WrongCard
from models.sources.fetch import fetch
from models.sources.request import Progress
from models.tokenizers.tokenizer import Tokenizer
from models.weights.checkpoint import tensor_names
from models.weights.layer_names import needed_names
from models.weights.reader import open_weights
from models.weights.safetensors_weights import index_files
from tests.support.model_servers import FakeServer, fake_hub, files_of, ignore, leftovers, tiny_card
from tests.support.models import write_tiny_llama


def test_gateway_fetches_settings_without_weights(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    folder = fetch(hub_card, None, cache, ignore)
    assert Tokenizer.load(cache.folder(hub_card)).chat_template is not None
    assert folder == cache.folder(hub_card)
    assert leftovers(cache) == []


@pytest.mark.parametrize("shard", [Shard("tiny", 0, 1, 4), Shard("tiny", 1, 3, 4), Shard("tiny", 3, 4, 4)], ids=str)
def test_shard_fetches_only_the_files_it_needs(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, repository: Path, shard: Shard
) -> None:
    part = open_weights(fetch(hub_card, shard, cache, ignore))
    full = open_weights(repository)
    names = tensor_names(part.architecture, shard)
    assert set(names) <= part.names() < full.names()
    assert all((part.tensor(name) == full.tensor(name)).all() for name in names)


def test_undescribed_family_fetches_only_the_files_it_needs(
    hub_card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = repository / "config.json"
    settings.write_text(settings.read_text().replace('"model_type": "llama"', '"model_type": "mixtral"'))
    with fake_hub(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        part = open_weights(fetch(hub_card, Shard("tiny", 1, 2, 4), cache, ignore))
        names = needed_names(Shard("tiny", 1, 2, 4), sorted(index_files(repository)))
        assert len(names) == 9, "of one layer"
        assert set(names) <= part.names() < index_files(repository).keys()


def test_progress_ends_at_the_total(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    steps: list[Progress] = []
    fetch(hub_card, whole("tiny", 4), cache, steps.append)
    assert steps[-1].done_bytes == steps[-1].total_bytes > 300_000


def test_wrong_card_is_refused_before_the_weights(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    fetch(hub_card, None, cache, ignore)
    wrong = msgspec.structs.replace(hub_card, n_kv_heads=4)
    for shard in (None, whole("tiny", 4)):
        with pytest.raises(WrongCard, match=r"n_kv_heads is 4, but that of \S+ is 2; correct the card"):
            fetch(wrong, shard, cache, ignore)
    assert leftovers(cache) == []


def test_restart_sends_the_hub_no_request(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    fetch(hub_card, whole("tiny", 4), cache, ignore)
    hub.requests.clear()
    fetch(hub_card, Shard("tiny", 1, 3, 4), cache, ignore)
    fetch(hub_card, None, cache, ignore)
    assert hub.requests == []


def test_damaged_file_is_deleted_and_fetched_again(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, repository: Path
) -> None:
    name = "model-00001-of-00004.safetensors"
    hub.faults.instead[name] = bytes((repository / name).stat().st_size)
    with pytest.raises(DownloadError, match="came damaged from the hub and was deleted"):
        fetch(hub_card, whole("tiny", 4), cache, ignore)
    assert not (cache.folder(hub_card) / name).exists()
    hub.faults.instead.clear()
    assert (fetch(hub_card, whole("tiny", 4), cache, ignore) / name).read_bytes() == (repository / name).read_bytes()


def test_missing_repository_is_reported(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    hub.faults.status["model info"] = 404
    with pytest.raises(DownloadError, match="the hub has no repository tiny/llama"):
        fetch(hub_card, None, cache, ignore)


def test_hub_error_is_reported_with_its_status(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    hub.faults.status["config.json"] = 403
    with pytest.raises(DownloadError, match="the hub does not let you read tiny/llama"):
        fetch(hub_card, None, cache, ignore)


def test_unreachable_hub_is_reported(hub_card: ModelCard, cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="could not be reached"):
        fetch(hub_card, None, cache, ignore)


def test_index_pointing_outside_the_folder_is_rejected(
    hub_card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {"weight_map": {"lm_head.weight": "../../evil.safetensors"}}
    (repository / "model.safetensors.index.json").write_bytes(msgspec.json.encode(index))
    with fake_hub(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(WeightsError, match="which exobus will not open"):
            fetch(hub_card, whole("tiny", 4), cache, ignore)
    assert "evil.safetensors" not in hub.fetched()


def test_unusable_configuration_is_rejected_before_its_weights(
    hub_card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "config.json").write_text('{"model_type": "mamba"}')
    with fake_hub(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(WeightsError, match="does not say its sizes"):
            fetch(hub_card, whole("tiny", 4), cache, ignore)
    assert not any(name.startswith("model-") for name in hub.fetched())


def test_cancelled_fetch_ends(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    cancelled = threading.Event()
    with pytest.raises(DownloadCancelled):
        fetch(hub_card, whole("tiny", 4), cache, lambda progress: cancelled.set(), cancelled)


@pytest.mark.parametrize("source", [HubSource("other/thing", "main"), HubSource("tiny/llama", "v2")])
def test_changed_card_never_serves_the_old_model(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, tmp_path: Path, source: HubSource
) -> None:
    old = fetch(hub_card, whole("tiny", 4), cache, ignore)
    kept = old / "model-00001-of-00004.safetensors"
    before = kept.stat().st_mtime_ns
    (old / "chat_template.jinja").write_text("of the old model")
    hub.files.clear()
    hub.files.update(
        files_of(write_tiny_llama(tmp_path / "new", n_layers=4, tie=False, dtype="bfloat16", seed=7, shards=4))
    )
    hub.files[kept.name] = kept.read_bytes()
    hub.commit, hub.requests[:] = "f" * 40, []
    new = fetch(tiny_card(source, tied=False), whole("tiny", 4), cache, ignore)
    assert {name: (new / name).read_bytes() for name in hub.files} == hub.files
    assert not (new / "chat_template.jinja").exists() or "chat_template.jinja" in hub.files
    assert f"/api/models/{source.repo}/revision/{source.revision}" in hub.requests[0]
    assert kept.stat().st_mtime_ns == before, "a file with the same hash was fetched again"


def test_rewritten_history_between_settings_and_weights_heals(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, tmp_path: Path
) -> None:
    fetch(hub_card, None, cache, ignore)
    hub.files.update(
        files_of(write_tiny_llama(tmp_path / "new", n_layers=4, tie=False, dtype="bfloat16", seed=7, shards=4))
    )
    hub.files["generation_config.json"] = b'{"eos_token_id": 7}'
    hub.commit = "f" * 40
    folder = fetch(hub_card, whole("tiny", 4), cache, ignore)
    assert {name: (folder / name).read_bytes() for name in hub.files} == hub.files


def test_settings_that_are_not_all_there_are_completed(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    hub.faults.status["tokenizer_config.json"] = 403  # as if the process had been killed between two files
    with pytest.raises(DownloadError):
        fetch(hub_card, None, cache, ignore)
    hub.faults.status.clear()
    folder = fetch(hub_card, None, cache, ignore)
    assert (folder / "tokenizer_config.json").read_bytes() == hub.files["tokenizer_config.json"]


@pytest.mark.parametrize("path", ["", "/mirrors/hub"])
def test_endpoint_may_have_a_path_and_a_slash(
    repository: Path, hub_card: ModelCard, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    with fake_hub(repository, path) as strict:
        monkeypatch.setenv("HF_ENDPOINT", f"{strict.url}/")
        folder = fetch(hub_card, whole("tiny", 4), cache, ignore)
    assert {name: (folder / name).read_bytes() for name in strict.files} == strict.files


@pytest.mark.parametrize("digest", ["../../outside", "/outside", "A" * 64, "0" * 63])
def test_hash_that_is_none_is_refused(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, tmp_path: Path, digest: str
) -> None:
    hub.faults.hashes["model-00001-of-00004.safetensors"] = digest
    with pytest.raises(DownloadError, match="with a hash that is none; check HF_ENDPOINT"):
        fetch(hub_card, whole("tiny", 4), cache, ignore)
    assert hub.fetched() == []
