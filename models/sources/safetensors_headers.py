"""The headers of safetensors files of the hub: so it is known before a model is fetched whether it is whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.shard import whole
from models.architecture import Architecture
from models.errors import WeightsError
from models.sources.hub_listing import Listing, read_object, read_range
from models.weights.layout import check_shapes, safetensors_places, stored_names
from models.weights.reader import check_whole
from models.weights.safetensors_weights import INDEX, SINGLE, checked_index, header_length, header_tensors
from models.weights.stored import StoredTensor

FIRST_BYTES = 128 << 10  # in which most headers end
AT_ONCE = 8  # files; large models have a hundred


class SafetensorsHeaders:
    """The headers of one model's files, each read once. The methods raise WeightsError, and what the hub raises.

    `check_cancelled` is called before each request, and what it raises ends the reading. In errors a file is
    REPO/FILE.
    """

    def __init__(self, listing: Listing, check_cancelled: Callable[[], None]) -> None:
        self._listing = listing
        self._check_cancelled = check_cancelled
        self._read: dict[str, Mapping[str, StoredTensor]] = {}

    def files(self) -> dict[str, str]:
        """Map the names of all tensors to files: by the index, or the header of the only file."""
        if SINGLE in self._listing.files:
            return dict.fromkeys(self._headers([SINGLE])[SINGLE], SINGLE)
        where = f"{INDEX} of {self._listing.repo}"
        files = checked_index(read_object(self._listing, INDEX), where)
        if absent := sorted(set(files.values()) - self._listing.files.keys()):
            raise WeightsError(f"{self._listing.repo} lacks {absent[0]}, which its {INDEX} names; pick another model")
        return files

    def check(self, architecture: Architecture, files: Mapping[str, str]) -> None:
        """Compare names and shapes in the headers with a description, and with what `files` returned."""
        repo, places = self._listing.repo, safetensors_places(architecture, whole("", architecture.n_layers))
        there = [name for name, place in places.items() if all(part in files for part in place.names)]
        check_whole(architecture, there, repo)
        headers = self._headers(sorted(set(files.values())))
        for name in stored_names(places):
            if name not in headers[files[name]]:
                sentence = f"{INDEX} of {repo} says that {files[name]} holds {name}, which it does not"
                raise WeightsError(f"{sentence}; pick another model")
        for file, tensors in headers.items():
            check_shapes(places, tensors, Path(repo, file))

    def _headers(self, files: Sequence[str]) -> dict[str, Mapping[str, StoredTensor]]:
        new = [file for file in files if file not in self._read]
        pool = ThreadPoolExecutor(AT_ONCE, "headers")
        try:
            self._read |= zip(new, pool.map(self._header, new), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)
        return {file: self._read[file] for file in files}

    def _header(self, file: str) -> Mapping[str, StoredTensor]:
        self._check_cancelled()
        url, size = self._listing.url(file), self._listing.files[file].size
        path, first = Path(self._listing.repo, file), read_range(url, 0, FIRST_BYTES)
        length = header_length(path, first, size)
        text = first[8 : 8 + length]
        if left := length - len(text):
            self._check_cancelled()
            text += read_range(url, 8 + len(text), left)
        return header_tensors(path, text, size)
