"""A model folder or .gguf file of the user's own is checked and used in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.shard import Shard, whole
from models.cache import ModelCache
from models.card import FolderSource
from models.errors import DownloadError, WrongCard
from models.sources.fetch import fetch
from models.tokenizers.tokenizer import Tokenizer
from tests.support.model_servers import ignore, tiny_card
from tests.support.models import write_tiny_gguf, write_tiny_llama


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def test_folder_is_used_in_place(cache: ModelCache, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "mine")
    card = tiny_card(FolderSource(folder))
    assert fetch(card, whole("tiny", 4), cache, ignore) == fetch(card, None, cache, ignore) == folder
    assert Tokenizer.load(cache.folder(card)).eos_token_ids == {2}
    assert not cache.root.exists()


def test_tokenizer_of_a_gguf_file_is_cached(cache: ModelCache, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "mine.gguf")
    card = tiny_card(FolderSource(path))
    assert fetch(card, None, cache, ignore) == path
    assert Tokenizer.load(cache.folder(card)).eos_token_ids == {2}


def test_missing_folder_is_named(cache: ModelCache, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="correct the path in its card"):
        fetch(tiny_card(FolderSource(tmp_path / "gone")), None, cache, ignore)


def test_card_that_differs_from_the_folder_is_refused(cache: ModelCache, tmp_path: Path) -> None:
    card = tiny_card(FolderSource(write_tiny_llama(tmp_path / "mine", context=256)))
    with pytest.raises(WrongCard, match=r"context_length is 512, but that of \S+mine is 256; correct the card"):
        fetch(card, None, cache, ignore)


def test_folder_without_a_needed_tensor_is_rejected(cache: ModelCache, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "mine", shards=4)
    (folder / "model-00004-of-00004.safetensors").unlink()
    card = tiny_card(FolderSource(folder))
    assert fetch(card, Shard("tiny", 0, 1, 4), cache, ignore) == folder
    with pytest.raises(DownloadError, match="lacks model"):
        fetch(card, whole("tiny", 4), cache, ignore)


@pytest.mark.parametrize("shard", [None, whole("tiny", 4)], ids=["tokenizer", "weights"])
def test_file_that_is_changed_in_use_is_refused(cache: ModelCache, tmp_path: Path, shard: Shard | None) -> None:
    card = tiny_card(FolderSource(write_tiny_gguf(tmp_path / "mine.gguf")))
    fetch(card, None, cache, ignore)
    write_tiny_gguf(tmp_path / "other.gguf", seed=1).replace(tmp_path / "mine.gguf")
    with pytest.raises(DownloadError, match=r"mine\.gguf of the model \S+ was changed while exobus runs; restart"):
        fetch(card, shard, cache, ignore)
    restarted = ModelCache(cache.root)
    assert fetch(card, shard, restarted, ignore) == tmp_path / "mine.gguf"


def test_folder_that_is_changed_in_use_is_refused(cache: ModelCache, tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "mine")
    card = tiny_card(FolderSource(folder))
    fetch(card, None, cache, ignore)
    (folder / "notes.txt").write_text("no part of the model")
    fetch(card, None, cache, ignore)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(DownloadError, match="was changed while exobus runs"):
        fetch(card, whole("tiny", 4), cache, ignore)
