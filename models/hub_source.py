"""The source for models on a Hugging Face hub: just the files of the shard, through `huggingface_hub`.

Which hub is HF_ENDPOINT's business, and who asks is HF_TOKEN's; both are that package's own settings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cluster.shard import Shard
from models.cache import (
    Fetch,
    Progress,
    Record,
    check_space,
    checked_file,
    is_whole,
    read_record,
    write_record,
)
from models.card import HubSource
from models.checkpoint import shard_names
from models.config import config_from_folder
from models.errors import DownloadError
from models.files import sha256_of
from models.safetensors_weights import INDEX, SINGLE, index_files

_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
)
_REQUIRED = ("config.json", "tokenizer.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _RemoteFile(msgspec.Struct, frozen=True):
    """A file as the hub lists it; `sha256` is empty for the small ones that live in git itself."""

    name: str
    size: int
    sha256: str


def fetch_from_hub(fetch: Fetch, source: HubSource) -> Path:
    """The model's folder, holding its settings and, for a shard, the weights files with its tensors.

    Files once fetched and checked are trusted, so a restart asks the hub nothing. Raises ModelError.
    """
    with fetch.cache.locked(fetch.card, fetch.report, fetch.cancelled) as folder:
        record = read_record(folder)
        if not _is_complete(folder, record, fetch.shard):
            with _told_plainly(source):
                _complete(fetch, source, folder, record)
    return folder


def _is_complete(folder: Path, record: Record, shard: Shard | None) -> bool:
    settings = [name for name in record.files if name in _SETTINGS]
    if not settings or not all(is_whole(folder / name, record.files[name]) for name in settings):
        return False
    return all(is_whole(folder / name, record.files.get(name)) for name in _weights_files(folder, shard))


def _weights_files(folder: Path, shard: Shard | None) -> list[str]:
    """The files that hold the shard's tensors, in name order. WeightsError."""
    if shard is None:
        return []
    if not (folder / INDEX).is_file():
        return [SINGLE]
    files = index_files(folder)
    names = shard_names(config_from_folder(folder), shard)
    missing = [name for name in names if name not in files]
    if missing:
        raise DownloadError(f"the index in {folder} does not say where {missing[0]} is; pick another model")
    return sorted({files[name] for name in names})


def _complete(fetch: Fetch, source: HubSource, folder: Path, record: Record) -> None:
    """Bring what is missing: first the settings, which say which weights files are wanted, then those."""
    remote = _list_files(source, record)
    wanted = [name for name in _SETTINGS if name in remote or name in _REQUIRED]
    _bring(fetch, source, folder, record, [_listed(source, remote, name) for name in wanted])
    weights = _weights_files(folder, fetch.shard)
    _bring(fetch, source, folder, record, [_listed(source, remote, name) for name in weights])


def _list_files(source: HubSource, record: Record) -> dict[str, _RemoteFile]:
    """The repository's files by name, at the commit of earlier files, else at the card's revision now."""
    info = HfApi(endpoint=_endpoint()).model_info(
        source.repo, revision=record.revision or source.revision, files_metadata=True
    )
    if not _COMMIT.fullmatch(str(info.sha)):
        raise DownloadError(f"the hub gave no commit for {source.repo}; check HF_ENDPOINT and try again")
    record.revision = str(info.sha)
    return {
        file.rfilename: _RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "")
        for file in info.siblings or []
    }


def _listed(source: HubSource, remote: dict[str, _RemoteFile], name: str) -> _RemoteFile:
    if name not in remote:
        raise DownloadError(f"the repository {source.repo} has no {name}; pick another model")
    return remote[name]


def _bring(fetch: Fetch, source: HubSource, folder: Path, record: Record, files: list[_RemoteFile]) -> None:
    missing = [file for file in files if not is_whole(folder / file.name, record.files.get(file.name))]
    check_space(folder, sum(file.size for file in missing))
    present = sum(file.size for file in files) - sum(file.size for file in missing)
    meter = _Meter(fetch, present, sum(file.size for file in files))
    for file in missing:
        fetch.check_cancelled()
        (folder / file.name).unlink(missing_ok=True)  # the hub's library would trust what is there
        meter.begin(file.name)
        hf_hub_download(
            source.repo,
            file.name,
            revision=record.revision,
            local_dir=folder,
            endpoint=_endpoint(),
            tqdm_class=meter.bar_class(),
        )
        _check(folder / file.name, file, record)
        write_record(folder, record)


def _check(path: Path, file: _RemoteFile, record: Record) -> None:
    """Record a file that is what the hub listed; delete any other. DownloadFailed."""
    found = sha256_of(path)
    if path.stat().st_size != file.size or (file.sha256 and found != file.sha256):
        path.unlink()
        raise DownloadError(f"{file.name} came damaged from the hub and was deleted; try again")
    record.files[file.name] = checked_file(path, found)


class _Meter:
    """Adds up the bytes of several downloads and reports them; here is also where a cancel takes hold."""

    def __init__(self, fetch: Fetch, done_bytes: int, total_bytes: int) -> None:
        self._fetch = fetch
        self._done_bytes = done_bytes
        self._total_bytes = total_bytes
        self._file = ""

    def begin(self, file: str) -> None:
        self._file = file

    def add(self, count: int) -> None:
        self._fetch.check_cancelled()
        self._done_bytes = min(self._done_bytes + count, self._total_bytes)
        self._fetch.report(Progress(self._done_bytes, self._total_bytes, self._file))

    def bar_class(self) -> type[_Bar]:
        """The hub's library wants a class to make its progress bars of."""
        return type("_MeterBar", (_Bar,), {"add": staticmethod(self.add)})


class _Bar:
    """As much of a tqdm bar as the hub's library calls; it draws nothing."""

    add: Callable[[int], None]

    def __init__(self, *, total: int | None = None, initial: int = 0, **options: Any) -> None:
        self.n, self.total = 0, total
        self.format_dict: dict[str, Any] = {}
        if initial:
            self.update(initial)

    def update(self, count: float = 1) -> None:
        self.n += int(count)
        self.add(int(count))

    def update_transfer(self, count: float) -> None:
        """Bytes on the wire, which for a deduplicating store are not those of the file: not counted."""

    def refresh(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing is drawn."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Nothing is drawn."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _told_plainly(source: HubSource) -> Iterator[None]:
    """Turn the library's exceptions into one sentence each; other errors of the disk pass."""
    try:
        yield
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        # The library wraps the failure of a file's first request into "not found locally either".
        wrapped = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise DownloadError(_reason(source, wrapped or error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DownloadError(
            f"a file of {source.repo} came incomplete from the hub; try again to go on with it"
        ) from error


def _reason(source: HubSource, error: BaseException) -> str:
    match error:
        case GatedRepoError():
            return (
                f"{source.repo} is open only to those who accepted its licence; accept it on its page and set HF_TOKEN"
            )
        case RepositoryNotFoundError() | RevisionNotFoundError():
            return (
                f"the hub has no repository {source.repo} at {source.revision}, or not for you; "
                "check the model card and HF_TOKEN"
            )
        case HfHubHTTPError():
            return f"the hub answered {error.response.status_code} for {source.repo}; try again later"
        case _:
            return f"the hub could not be reached for {source.repo}; check the network and HF_ENDPOINT, then try again"


def _endpoint() -> str | None:
    """Read at each use: the library reads it only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None
