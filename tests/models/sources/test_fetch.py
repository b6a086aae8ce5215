"""What all sources share: waiting for another process, and a cache that cannot be used."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from models.cache import ModelCache
from models.card import FolderSource, PackageSource
from models.errors import DownloadCancelled, DownloadError
from models.sources.fetch import fetch
from models.sources.request import FetchRequest, Progress
from tests.support.model_servers import ignore, tiny_card
from tests.support.models import write_tiny_gguf


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def test_waiting_for_another_process_shows_its_progress(cache: ModelCache, tmp_path: Path) -> None:
    card = tiny_card(PackageSource("tiny-llama==1.0", "0" * 64, "tiny_llama/tiny.gguf"))
    cancelled, seen = threading.Event(), list[Progress]()

    def see(progress: Progress) -> None:
        seen.append(progress)
        cancelled.set()

    with FetchRequest(card, None, cache, ignore, threading.Event()).locked_folder() as folder:
        (folder / "tiny.gguf.part").write_bytes(bytes(1000))
        with pytest.raises(DownloadCancelled):
            fetch(card, None, cache, see, cancelled)
    assert seen == [Progress(1000, card.size_bytes, "tiny")]


def test_unusable_cache_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="set EXOBUS_CACHE to another folder"):
        fetch(
            tiny_card(FolderSource(write_tiny_gguf(tmp_path / "a.gguf"))),
            None,
            ModelCache(tmp_path / "file"),
            ignore,
        )
