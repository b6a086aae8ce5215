"""A download goes on where an earlier one ended, whatever became of its part and of the server meanwhile.

`python -m tests.models.sources.test_resume FOLDER` fetches the tiny model, so that a test can kill it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from cluster.shard import whole
from models.cache import ModelCache
from models.card import HubSource, ModelCard
from models.errors import DownloadCancelled, DownloadError
from models.sources import resume
from models.sources.fetch import fetch
from models.sources.request import Progress
from tests.support.bus import ROOT, in_time
from tests.support.model_servers import FakeServer, fake_hub, files_of, ignore, tiny_card
from tests.support.models import write_tiny_llama

NAME = "model-00002-of-00004.safetensors"
CUT = 20_000
ALL = whole("tiny", 4)


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "PAUSE_S", 0.01)


def ranges(hub: FakeServer) -> list[int]:
    """Return the first bytes of the ranges of the file that were requested."""
    return [first for name, first in hub.first_bytes if name == NAME]


def parts(cache: ModelCache) -> list[Path]:
    return sorted((cache.root / "tiny" / ".parts").glob("*"))


def leave_part(hub: FakeServer, card: ModelCard, cache: ModelCache) -> Path:
    """Fetch until the first bytes of the file are there, and give up."""
    cancelled = threading.Event()

    def give_up(progress: Progress) -> None:
        if progress.file == NAME and ranges(hub):
            cancelled.set()

    hub.faults.cut[NAME] = [CUT]
    with pytest.raises(DownloadCancelled, match="ask for the model again to continue"):
        fetch(card, ALL, cache, give_up, cancelled)
    hub.first_bytes.clear()
    (part,) = parts(cache)
    return part


def fetched(hub: FakeServer, card: ModelCard, cache: ModelCache) -> bool:
    """Fetch the whole model, and return whether it is right and nothing else is left."""
    folder = fetch(card, ALL, cache, ignore)
    names = {path.name for path in folder.iterdir()} - {".exobus.json"}
    return {name: (folder / name).read_bytes() for name in names} == hub.files


def test_cancelled_download_goes_on_where_it_ended(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    begun = leave_part(hub, hub_card, cache).stat().st_size
    assert 0 < begun <= CUT
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [begun]


def test_part_is_counted_once(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    begun = leave_part(hub, hub_card, cache).stat().st_size
    steps: list[Progress] = []
    fetch(hub_card, ALL, cache, steps.append)
    done = [step.done_bytes for step in steps if step.file == NAME]
    first = len(hub.files["model-00001-of-00004.safetensors"])
    assert done[0] == first + begun
    assert done[-1] == first + len(hub.files[NAME])
    assert steps[-1].done_bytes == steps[-1].total_bytes


def test_killed_download_leaves_one_part_that_is_used(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, tmp_path: Path
) -> None:

    def has_come(count: int) -> bool:
        return [part.stat().st_size for part in parts(cache)] == [count]

    released = hub.faults.stalled[NAME] = threading.Event()
    try:
        for kill in (1, 2):
            hub.faults.cut[NAME] = [CUT]
            command = [sys.executable, "-m", "tests.models.sources.test_resume", str(cache.root)]
            process = subprocess.Popen(command, cwd=ROOT)
            try:
                assert in_time(partial(has_come, kill * CUT))
            finally:
                process.kill()
                process.wait()
    finally:
        released.set()
    assert ranges(hub) == [0, CUT]
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [0, CUT, 2 * CUT]


def test_every_cut_connection_is_continued(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    hub.faults.cut[NAME] = [10_000, 10_000, 10_000]
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [0, 10_000, 20_000, 30_000]


def test_connection_that_brings_nothing_ends_with_a_sentence(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache
) -> None:
    hub.faults.cut[NAME] = [CUT, *[0] * resume.TRIES]
    with pytest.raises(DownloadError, match="the hub could not be reached for tiny/llama"):
        fetch(hub_card, ALL, cache, ignore)
    assert [part.stat().st_size for part in parts(cache)] == [CUT]


def test_file_shorter_than_listed_is_refused(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    hub.faults.longer[NAME] = 1000
    with pytest.raises(DownloadError, match="is shorter than the hub lists it"):
        fetch(hub_card, ALL, cache, ignore)
    assert ranges(hub) == [0, len(hub.files[NAME])]


def test_server_that_always_begins_anew_is_given_up(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    hub.faults.whole.add(NAME)
    hub.faults.cut[NAME] = [CUT] * 20
    with pytest.raises(DownloadError, match="could not be reached"):
        fetch(hub_card, ALL, cache, ignore)
    assert len(ranges(hub)) <= 2 * resume.TRIES


@pytest.mark.parametrize("status", [500, 503])
def test_passing_error_of_the_hub_is_tried_again(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, status: int
) -> None:
    hub.faults.status[NAME] = status

    def pass_by(progress: Progress) -> None:
        if hub.fetched().count(NAME) == 2:
            hub.faults.status.clear()

    fetch(hub_card, ALL, cache, pass_by)
    assert fetched(hub, hub_card, cache)


def test_server_that_ignores_ranges_sends_the_whole_file(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache
) -> None:
    begun = leave_part(hub, hub_card, cache).stat().st_size
    hub.faults.whole.add(NAME)
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [begun]


def test_refused_range_begins_anew(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    begun = leave_part(hub, hub_card, cache).stat().st_size
    hub.faults.no_range.add(NAME)
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [begun, 0]


@pytest.mark.parametrize("extra", [0, 1], ids=["as long", "longer"])
def test_part_of_zeros_is_found_by_its_hash(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, extra: int
) -> None:
    leave_part(hub, hub_card, cache).write_bytes(bytes(len(hub.files[NAME]) + extra))
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [0]


def test_part_of_zeros_at_the_beginning_is_found_by_its_hash(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache
) -> None:
    leave_part(hub, hub_card, cache).write_bytes(bytes(CUT))
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [CUT, 0]


def test_file_that_changed_between_two_parts_begins_anew(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, tmp_path: Path
) -> None:
    leave_part(hub, hub_card, cache)
    hub.files.update(
        files_of(write_tiny_llama(tmp_path / "b", n_layers=4, tie=False, dtype="bfloat16", seed=7, shards=4))
    )
    hub.commit = "f" * 40
    assert fetched(hub, hub_card, cache)
    assert ranges(hub) == [0]


def test_other_file_under_the_same_name_is_refused(hub: FakeServer, hub_card: ModelCard, cache: ModelCache) -> None:
    leave_part(hub, hub_card, cache)
    hub.faults.instead[NAME] = hub.files[NAME][:CUT] + bytes(len(hub.files[NAME]))
    with pytest.raises(DownloadError, match=f"{NAME} came damaged from the hub and was deleted"):
        fetch(hub_card, ALL, cache, ignore)
    assert parts(cache) == []


def test_token_stays_with_the_hub(
    hub: FakeServer, hub_card: ModelCard, cache: ModelCache, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with fake_hub(repository) as store:
        hub.faults.elsewhere[NAME] = f"{store.url}/tiny/llama/resolve/{store.commit}/{NAME}"
        assert fetched(hub, hub_card, cache)
        assert store.fetched() == [NAME]
        assert store.tokens == [""]
    assert set(hub.tokens) == {"Bearer hf_secret"}


def main(root: str) -> None:
    """Fetch the tiny model from HF_ENDPOINT into a cache."""
    fetch(tiny_card(HubSource("tiny/llama", "main"), tied=False), ALL, ModelCache(Path(root)), ignore)


if __name__ == "__main__":
    main(sys.argv[1])
