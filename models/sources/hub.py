"""The source for models on a Hugging Face hub: downloads only the files of the shard, with `huggingface_hub`.

HF_ENDPOINT names the hub and HF_TOKEN the user; both are settings of that package.
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
from models.cache import Record, checked_file, is_complete, read_record, sha256_of, write_record
from models.card import HubSource
from models.errors import DownloadError
from models.sources.request import FetchRequest, Progress, check_space
from models.weights.checkpoint import tensor_names
from models.weights.safetensors_weights import INDEX, SINGLE, folder_config, index_files

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


def fetch_from_hub(request: FetchRequest, source: HubSource) -> Path:
    """Return the model's folder with its settings and, for a shard, the weights files that hold its tensors.

    Files once fetched and checked are trusted, so a restart sends the hub no request. Raises a ModelError.
    """
    with request.locked_folder() as folder:
        record = read_record(folder)
        if not _has_all_files(folder, record, request.shard):
            with _plain_errors(source):
                _HubFetch(request, source, folder, record).run()
    return folder


def _has_all_files(folder: Path, record: Record, shard: Shard | None) -> bool:
    settings = [name for name in record.files if name in _SETTINGS]
    if not settings or not all(is_complete(folder / name, record.files[name]) for name in settings):
        return False
    return all(is_complete(folder / name, record.files.get(name)) for name in _weights_files(folder, shard))


def _weights_files(folder: Path, shard: Shard | None) -> list[str]:
    """List the files that hold the shard's tensors, in name order. Raises a ModelError."""
    if shard is None:
        return []
    if not (folder / INDEX).is_file():
        return [SINGLE]
    files = index_files(folder)
    names = tensor_names(folder_config(folder), shard)
    missing = [name for name in names if name not in files]
    if missing:
        raise DownloadError(f"the index in {folder} does not say where {missing[0]} is; pick another model")
    return sorted({files[name] for name in names})


class _HubFetch:
    """Downloads the files that a locked folder lacks."""

    def __init__(self, request: FetchRequest, source: HubSource, folder: Path, record: Record) -> None:
        self._request = request
        self._source = source
        self._folder = folder
        self._record = record

    def run(self) -> None:
        """Download the settings first, since they say which weights files are needed, then those."""
        remote = self._list_files()
        self._download(remote, [name for name in _SETTINGS if name in remote or name in _REQUIRED])
        self._download(remote, _weights_files(self._folder, self._request.shard))

    def _list_files(self) -> dict[str, _RemoteFile]:
        """List the repository's files by name, at the commit of earlier files or else at the card's revision now."""
        repo, revision = self._source.repo, self._record.revision or self._source.revision
        info = HfApi(endpoint=_endpoint()).model_info(repo, revision=revision, files_metadata=True)
        if not _COMMIT.fullmatch(str(info.sha)):
            raise DownloadError(f"the hub gave no commit for {repo}; check HF_ENDPOINT and try again")
        self._record.revision = str(info.sha)
        return {
            file.rfilename: _RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "")
            for file in info.siblings or []
        }

    def _download(self, remote: dict[str, _RemoteFile], names: list[str]) -> None:
        """Download, check and record those of the named files that are not complete yet."""
        absent = [name for name in names if name not in remote]
        if absent:
            raise DownloadError(f"the repository {self._source.repo} has no {absent[0]}; pick another model")
        files, known = [remote[name] for name in names], self._record.files
        missing = [file for file in files if not is_complete(self._folder / file.name, known.get(file.name))]
        total_bytes, missing_bytes = sum(file.size for file in files), sum(file.size for file in missing)
        check_space(self._folder, missing_bytes)
        meter = _Meter(self._request, total_bytes - missing_bytes, total_bytes)
        for file in missing:
            self._request.check_cancelled()
            (self._folder / file.name).unlink(missing_ok=True)  # the hub's library would trust what is there
            hf_hub_download(
                self._source.repo,
                file.name,
                revision=self._record.revision,
                local_dir=self._folder,
                endpoint=_endpoint(),
                tqdm_class=meter.bar_class(file.name),
            )
            self._check(file)
            write_record(self._folder, self._record)

    def _check(self, file: _RemoteFile) -> None:
        """Record a file that is what the hub listed. Deletes any other, and raises DownloadError."""
        path = self._folder / file.name
        found = sha256_of(path)
        if path.stat().st_size != file.size or (file.sha256 and found != file.sha256):
            path.unlink()
            raise DownloadError(f"{file.name} came damaged from the hub and was deleted; try again")
        self._record.files[file.name] = checked_file(path, found)


class _Meter:
    """Adds up the bytes of several downloads and reports them. A cancelled fetch stops here."""

    def __init__(self, request: FetchRequest, done_bytes: int, total_bytes: int) -> None:
        self._request = request
        self._done_bytes = done_bytes
        self._total_bytes = total_bytes

    def bar_class(self, file: str) -> type[_Bar]:
        """Make the class from which the hub's library makes the progress bars of one file."""

        def add(count: int) -> None:
            self._request.check_cancelled()
            self._done_bytes = min(self._done_bytes + count, self._total_bytes)
            self._request.report(Progress(self._done_bytes, self._total_bytes, file))

        return type("_MeterBar", (_Bar,), {"add": staticmethod(add)})


class _Bar:
    """The part of a tqdm bar that the hub's library calls. It draws nothing."""

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
        """Ignore the bytes on the wire, which a deduplicating store makes fewer than the file has."""

    def refresh(self) -> None:
        """Draw nothing."""

    def close(self) -> None:
        """Draw nothing."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Draw nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def _plain_errors(source: HubSource) -> Iterator[None]:
    """Turn the library's exceptions into a DownloadError of one sentence. Errors of the disk pass unchanged."""
    try:
        yield
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        # The library wraps the failure of a file's first request into "not found locally either".
        wrapped = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise DownloadError(_reason(source, wrapped or error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DownloadError(f"a file of {source.repo} came incomplete from the hub; try again to continue") from error


def _reason(source: HubSource, error: BaseException) -> str:
    match error:
        case GatedRepoError():
            return (
                f"{source.repo} is open only to those who accepted its license; accept it on its page and set HF_TOKEN"
            )
        case RepositoryNotFoundError() | RevisionNotFoundError():
            return (
                f"the hub has no repository {source.repo} at {source.revision}, or not for you; "
                "check the model card and HF_TOKEN"
            )
        case HfHubHTTPError():
            return f"the hub returned status {error.response.status_code} for {source.repo}; try again later"
        case _:
            return f"the hub could not be reached for {source.repo}; check the network and HF_ENDPOINT, then try again"


def _endpoint() -> str | None:
    """Read the variable at each use, since the library reads it only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None
