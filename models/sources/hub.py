"""The source for models on a Hugging Face hub: which files a shard needs, of which commit, and whether they are right.

HF_ENDPOINT names the hub and HF_TOKEN the user; both are settings of `huggingface_hub`. The bytes of a file come by
`models.sources.resume`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cluster.shard import Shard
from models.cache import Record, checked_file, clear_folder, is_complete, read_record, sha256_of, write_record
from models.card import SHA256, HubSource, compare_sizes
from models.errors import DownloadError
from models.sources.network import check_network_variables, hub_endpoint
from models.sources.request import FetchRequest, Progress, check_space
from models.sources.resume import download
from models.weights.layer_names import needed_names
from models.weights.layout import safetensors_places, stored_names
from models.weights.safetensors_weights import INDEX, SINGLE, folder_model, index_files

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
_PARTS = ".parts"  # in the model's folder: what has come of files, each under its hash


class _RemoteFile(msgspec.Struct, frozen=True):
    """A file as the hub lists it; `sha256` is empty for the small ones that live in git itself."""

    name: str
    size: int
    sha256: str


class _Listing(msgspec.Struct, frozen=True):
    """The files of a repository by name, at one commit."""

    commit: str
    files: dict[str, _RemoteFile]


def fetch_from_hub(request: FetchRequest, source: HubSource) -> Path:
    """Return the model's folder with its settings and, for a shard, the weights files that hold its tensors.

    Files once fetched and checked are trusted, so a restart sends the hub no request, and a complete model needs no
    cache that can be written. Raises a ModelError.
    """
    folder = request.folder
    if not _has_all_files(folder, read_record(folder), source, request.shard):
        with request.locked_folder(), _plain_errors(source):
            record = read_record(folder)
            if not _has_all_files(folder, record, source, request.shard):
                check_network_variables()
                _HubFetch(request, source, record).run()
    compare_sizes(request.card, folder_model(folder).sizes, folder)
    return folder


def _has_all_files(folder: Path, record: Record, source: HubSource, shard: Shard | None) -> bool:
    if record.source != _origin(source) or not record.settings:
        return False
    if not all(is_complete(folder / name, record.files.get(name)) for name in record.settings):
        return False
    return all(is_complete(folder / name, record.files.get(name)) for name in _weights_files(folder, shard))


def _origin(source: HubSource) -> str:
    return f"{source.repo}@{source.revision}"


def _weights_files(folder: Path, shard: Shard | None) -> list[str]:
    """List the files that hold the shard's tensors, in name order. Raises a ModelError."""
    if shard is None:
        return []
    if not (folder / INDEX).is_file():
        return [SINGLE]
    files, model = index_files(folder), folder_model(folder)
    if model.undescribed:
        return sorted({files[name] for name in needed_names(shard, files)})
    names = stored_names(safetensors_places(model.architecture, shard))
    missing = [name for name in names if name not in files]
    if missing:
        raise DownloadError(f"the index in {folder} does not say where {missing[0]} is; pick another model")
    return sorted({files[name] for name in names})


class _HubFetch:
    """Downloads the files that a locked folder lacks."""

    def __init__(self, request: FetchRequest, source: HubSource, record: Record) -> None:
        self._request = request
        self._source = source
        self._folder = request.folder
        self._record = record
        self._endpoint = hub_endpoint()

    def run(self) -> None:
        """Download the settings first, since they say which weights files are needed, then those."""
        listing = self._recorded_listing()
        if listing is None:
            listing = self._listing(self._source.revision)
            self._begin_anew(listing)
        self._remove_old_parts(listing)
        self._download(listing, self._record.settings)
        compare_sizes(self._request.card, folder_model(self._folder).sizes, self._folder)
        self._download(listing, _weights_files(self._folder, self._request.shard))
        with suppress(OSError):  # parts of another shard's files may be in it
            (self._folder / _PARTS).rmdir()

    def _recorded_listing(self) -> _Listing | None:
        """List the commit of earlier files. Returns None without one, for another source, and if the commit is gone."""
        if not self._record.revision or self._record.source != _origin(self._source):
            return None
        try:
            return self._listing(self._record.revision)
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError):  # a missing commit; mirrors tell both as one
            return None

    def _listing(self, revision: str) -> _Listing:
        repo = self._source.repo
        info = HfApi(endpoint=self._endpoint).model_info(repo, revision=revision, files_metadata=True)
        if not _COMMIT.fullmatch(str(info.sha)):
            raise DownloadError(f"the hub gave no commit for {repo}; check HF_ENDPOINT and try again")
        files = [
            _RemoteFile(file.rfilename, file.size or 0, str(file.lfs.sha256) if file.lfs else "")
            for file in info.siblings or []
        ]
        damaged = [file.name for file in files if file.sha256 and not SHA256.fullmatch(file.sha256)]
        if damaged:  # it would become a file's name
            raise DownloadError(f"the hub lists {damaged[0]} of {repo} with a hash that is none; check HF_ENDPOINT")
        return _Listing(str(info.sha), {file.name: file for file in files})

    def _begin_anew(self, listing: _Listing) -> None:
        """Record the commit, and remove all that another one left; files with the same hash stay."""
        files, folder = listing.files, self._folder
        kept = {
            name: known
            for name, known in self._record.files.items()
            if name in files and known.sha256 == files[name].sha256 and is_complete(folder / name, known)
        }
        clear_folder(folder, {_PARTS, *kept})
        settings = [name for name in _SETTINGS if name in files or name in _REQUIRED]
        self._record = Record(listing.commit, kept, _origin(self._source), settings)
        write_record(folder, self._record)

    def _remove_old_parts(self, listing: _Listing) -> None:
        """Remove parts of files that the repository does not have any more."""
        parts, wanted = self._folder / _PARTS, {_part_name(file) for file in listing.files.values()}
        parts.mkdir(exist_ok=True)
        clear_folder(parts, wanted)

    def _download(self, listing: _Listing, names: list[str]) -> None:
        """Download, check and record those of the named files that are not complete yet."""
        absent = [name for name in names if name not in listing.files]
        if absent:
            raise DownloadError(f"the repository {self._source.repo} has no {absent[0]}; pick another model")
        files, known = [listing.files[name] for name in names], self._record.files
        missing = [file for file in files if not is_complete(self._folder / file.name, known.get(file.name))]
        total_bytes, missing_bytes = sum(file.size for file in files), sum(file.size for file in missing)
        begun_bytes = sum(self._begun(file) for file in missing)
        check_space(self._folder, missing_bytes - begun_bytes)
        meter = _Meter(self._request, total_bytes - missing_bytes + begun_bytes, total_bytes)
        for file in missing:
            self._fetch(file, partial(meter.add, file.name))
            write_record(self._folder, self._record)

    def _part(self, file: _RemoteFile) -> Path:
        return self._folder / _PARTS / _part_name(file)

    def _begun(self, file: _RemoteFile) -> int:
        """Count the bytes that an earlier fetch left of a file. Removes them if they cannot be continued."""
        part = self._part(file)
        if not part.exists():
            return 0
        size = part.stat().st_size
        if file.sha256 and size <= file.size:
            return size
        part.unlink()  # without a hash, nothing would show that the beginning is another file's
        return 0

    def _fetch(self, file: _RemoteFile, received: Callable[[int], None]) -> None:
        """Download a file, and record it if it is what the hub listed. Deletes any other, and raises DownloadError."""
        part, path, commit = self._part(file), self._folder / file.name, self._record.revision
        begun = self._begun(file)
        url = hf_hub_url(self._source.repo, file.name, revision=commit, endpoint=self._endpoint)
        download(url, part, file.size, received, self._request.cancelled)
        found, size = sha256_of(part), part.stat().st_size
        if size == file.size and found == (file.sha256 or found):
            part.replace(path)
            self._record.files[file.name] = checked_file(path, found)
            return
        part.unlink()
        if not begun:
            raise DownloadError(f"{file.name} came damaged from the hub and was deleted; try again")
        received(-size)  # the beginning may be the damaged part, after a power cut for example
        self._fetch(file, received)


def _part_name(file: _RemoteFile) -> str:
    return file.sha256 or file.name


class _Meter:
    """Adds up the bytes of several downloads and reports them. A cancelled fetch stops here."""

    def __init__(self, request: FetchRequest, done_bytes: int, total_bytes: int) -> None:
        self._request = request
        self._done_bytes = done_bytes
        self._total_bytes = total_bytes

    def add(self, file: str, count: int) -> None:
        """Report `count` more bytes of a file; fewer than none if what has come of it is of no use."""
        self._request.check_cancelled()
        self._done_bytes += count
        self._request.report(Progress(min(self._done_bytes, self._total_bytes), self._total_bytes, file))


@contextmanager
def _plain_errors(source: HubSource) -> Iterator[None]:
    """Turn the library's exceptions into a DownloadError of one sentence. Errors of the disk pass unchanged."""
    try:
        yield
    except (HTTPError, ConnectionError) as error:
        raise DownloadError(_reason(source, error)) from error


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
