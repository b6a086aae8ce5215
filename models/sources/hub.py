"""The source for models on a Hugging Face hub: which files a shard needs, of which commit, and whether they are right.

HF_ENDPOINT names the hub and HF_TOKEN the user; both are settings of `huggingface_hub`. The bytes of a file come by
`models.sources.resume`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from cluster.shard import Shard
from models.cache import Record, checked_file, clear_folder, is_complete, read_record, sha256_of, write_record
from models.card import HubSource, compare_sizes
from models.errors import DownloadError, NotOnHub
from models.sources.gguf_headers import HEADERS, fetch_headers, named_by_repository
from models.sources.hub_listing import Listing, RemoteFile, list_repository, plain_errors
from models.sources.network import check_network_variables
from models.sources.request import FetchRequest, Progress, check_space
from models.sources.resume import download
from models.tokenizers.gguf_tokenizer import ensure_tokenizer, is_built
from models.weights.float8 import scale_names
from models.weights.layer_names import needed_names
from models.weights.layout import safetensors_places, stored_names
from models.weights.reader import sizes_at
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
_PARTS = ".parts"  # in the model's folder: what has come of files, each under its hash


def fetch_from_hub(request: FetchRequest, source: HubSource) -> Path:
    """Return the model's folder with its settings and, for a shard, the weights files that hold its tensors.

    Of a GGUF model it is the path of its first file. A gateway gets that file's header alone, and the tokenizer made
    from it. Files once fetched and checked are trusted, so a restart sends the hub no request, and a complete model
    needs no cache that can be written. Raises a ModelError.
    """
    folder = request.folder
    if source.files and request.shard is None:
        return _fetch_text(request, source)
    if not _has_all_files(folder, read_record(folder), source, request.shard):
        with request.locked_folder(), plain_errors(source.repo, source.revision):
            record = read_record(folder)
            if not _has_all_files(folder, record, source, request.shard):
                check_network_variables()
                _HubFetch(request, source, record).run()
    if not source.files:
        compare_sizes(request.card, folder_model(folder).sizes, folder)
        return folder
    path = folder / _local(source.files[0])
    compare_sizes(request.card, read_record(folder).sizes or sizes_at(path), path)
    return path


def _fetch_text(request: FetchRequest, source: HubSource) -> Path:
    """Make the tokenizer of a GGUF model from its header. Returns the path of the header's file."""
    path = request.folder / HEADERS / source.revision / _local(source.files[0])
    if not (path.is_file() and is_built(path, request.folder)):
        repo = source.repo
        with (
            request.locked_folder() as folder,
            plain_errors(repo, source.revision),
            named_by_repository(path.parent, repo),
        ):
            if not path.is_file():
                check_network_variables()
                listing = list_repository(source.repo, source.revision)
                fetch_headers(listing, source.files[:1], path.parent, request.check_cancelled)
            ensure_tokenizer(path, folder)
    return path


def _has_all_files(folder: Path, record: Record, source: HubSource, shard: Shard | None) -> bool:
    if record.source != _origin(source) or not (record.settings or source.files):
        return False
    if not all(is_complete(folder / name, record.files.get(name)) for name in record.settings):
        return False
    wanted = _weights_files(folder, source, shard)
    return all(is_complete(folder / _local(name), record.files.get(name)) for name in wanted)


def _origin(source: HubSource) -> str:
    return f"{source.repo}@{source.revision}" + "".join(f":{file}" for file in source.files[:1])


def _local(name: str) -> str:
    """Return the name of a file in the model's own folder, which has no folders of the repository."""
    return PurePosixPath(name).name


def _weights_files(folder: Path, source: HubSource, shard: Shard | None) -> list[str]:
    """List the files that hold the shard's tensors, in name order. Raises a ModelError."""
    if source.files:
        return list(source.files)
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
    # Matrices of 8-bit floats have their scales beside them, mostly in the same file.
    scales = [scale for name in names for scale in scale_names(name) if scale in files]
    return sorted({files[name] for name in (*names, *scales)})


class _HubFetch:
    """Downloads the files that a locked folder lacks."""

    def __init__(self, request: FetchRequest, source: HubSource, record: Record) -> None:
        self._request = request
        self._source = source
        self._folder = request.folder
        self._record = record

    def run(self) -> None:
        """Download the settings first, since they say which weights files are needed, then those."""
        listing = self._recorded_listing()
        if listing is None:
            listing = list_repository(self._source.repo, self._source.revision)
            self._begin_anew(listing)
        self._remove_old_parts(listing)
        self._download(listing, self._record.settings)
        if not self._source.files:
            compare_sizes(self._request.card, folder_model(self._folder).sizes, self._folder)
        self._download(listing, _weights_files(self._folder, self._source, self._request.shard))
        if self._source.files:
            self._record.sizes = sizes_at(self._folder / _local(self._source.files[0]))
            write_record(self._folder, self._record)
        with suppress(OSError):  # parts of another shard's files may be in it
            (self._folder / _PARTS).rmdir()

    def _recorded_listing(self) -> Listing | None:
        """List the commit of earlier files. Returns None without one, for another source, and if the commit is gone."""
        if not self._record.revision or self._record.source != _origin(self._source):
            return None
        try:
            return list_repository(self._source.repo, self._record.revision)
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError):  # a missing commit; mirrors tell both as one
            return None

    def _begin_anew(self, listing: Listing) -> None:
        """Record the commit, and remove all that another one left; files with the same hash stay."""
        files, folder = listing.files, self._folder
        kept = {
            name: known
            for name, known in self._record.files.items()
            if name in files and known.sha256 == files[name].sha256 and is_complete(folder / _local(name), known)
        }
        clear_folder(folder, {_PARTS, HEADERS, *map(_local, kept)})
        wanted = () if self._source.files else _SETTINGS
        settings = [name for name in wanted if name in files or name in _REQUIRED]
        self._record = Record(listing.commit, kept, _origin(self._source), settings)
        write_record(folder, self._record)

    def _remove_old_parts(self, listing: Listing) -> None:
        """Remove parts of files that the repository does not have any more."""
        parts, wanted = self._folder / _PARTS, {_part_name(file) for file in listing.files.values()}
        parts.mkdir(exist_ok=True)
        clear_folder(parts, wanted)

    def _download(self, listing: Listing, names: list[str]) -> None:
        """Download, check and record those of the named files that are not complete yet."""
        absent = [name for name in names if name not in listing.files]
        if absent:
            raise NotOnHub(f"the repository {self._source.repo} has no {absent[0]}; pick another model")
        files, known = [listing.files[name] for name in names], self._record.files
        missing = [file for file in files if not is_complete(self._folder / _local(file.name), known.get(file.name))]
        total_bytes, missing_bytes = sum(file.size for file in files), sum(file.size for file in missing)
        begun_bytes = sum(self._begun(file) for file in missing)
        check_space(self._folder, missing_bytes - begun_bytes)
        meter = _Meter(self._request, total_bytes - missing_bytes + begun_bytes, total_bytes)
        for file in missing:
            self._fetch(listing, file, partial(meter.add, file.name))
            write_record(self._folder, self._record)

    def _part(self, file: RemoteFile) -> Path:
        return self._folder / _PARTS / _part_name(file)

    def _begun(self, file: RemoteFile) -> int:
        """Count the bytes that an earlier fetch left of a file. Removes them if they cannot be continued."""
        part = self._part(file)
        if not part.exists():
            return 0
        size = part.stat().st_size
        if file.sha256 and size <= file.size:
            return size
        part.unlink()  # without a hash, nothing would show that the beginning is another file's
        return 0

    def _fetch(self, listing: Listing, file: RemoteFile, received: Callable[[int], None]) -> None:
        """Download a file, and record it if it is what the hub listed. Deletes any other, and raises DownloadError."""
        part, path = self._part(file), self._folder / _local(file.name)
        begun = self._begun(file)
        download(listing.url(file.name), part, file.size, received, self._request.cancelled)
        found, size = sha256_of(part), part.stat().st_size
        if size == file.size and found == (file.sha256 or found):
            part.replace(path)
            self._record.files[file.name] = checked_file(path, found)
            return
        part.unlink()
        if not begun:
            raise DownloadError(f"{file.name} came damaged from the hub and was deleted; try again")
        received(-size)  # the beginning may be the damaged part, after a power cut for example
        self._fetch(listing, file, received)


def _part_name(file: RemoteFile) -> str:
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
