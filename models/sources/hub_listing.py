"""What a repository of the hub holds at one commit, small reads of its files, and the hub's errors as sentences.

HF_ENDPOINT names the hub and HF_TOKEN the user; both are settings of `huggingface_hub`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import msgspec
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from models.card import SHA256
from models.config import parse_object
from models.errors import DownloadError, NotOnHub, WeightsError
from models.sources.network import hub_endpoint

MAX_JSON_BYTES = 8 << 20
MAX_LISTING_BYTES = 32 << 20
SILENCE_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0  # for a short read, however it comes
LEAST_BYTES_PER_S = 64 << 10  # of a long one
_COMMIT = re.compile(r"[0-9a-f]{40}")


class RemoteFile(msgspec.Struct, frozen=True):
    """A file as the hub lists it; `sha256` is empty for the small ones that live in git itself."""

    name: str
    size: int
    sha256: str


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Info(msgspec.Struct, frozen=True):
    """What the hub says of a repository, as far as it is read."""

    sha: str = ""
    siblings: tuple[_Sibling, ...] | None = None
    cardData: dict[str, Any] | None = None


class _Found(msgspec.Struct, frozen=True):
    id: str


class Listing(msgspec.Struct, frozen=True):
    """The files of a repository by name, at one commit, and its license as its page names it."""

    repo: str
    commit: str
    files: dict[str, RemoteFile]
    license: str = ""

    def url(self, name: str) -> str:
        """Return the address of a file at this commit."""
        return str(hf_hub_url(self.repo, name, revision=self.commit, endpoint=hub_endpoint()))


def list_repository(repo: str, revision: str) -> Listing:
    """Request the listing of a repository. Raises DownloadError, or what `plain_errors` turns into it.

    `HfApi.model_info` is not used: it waits as long as a hub sends a byte now and then, or none at all.
    """
    url = f"{_hub()}/api/models/{repo}/revision/{quote(revision, safe='')}"
    text = _read(url, MAX_LISTING_BYTES, params={"blobs": "true"})
    try:
        info = msgspec.convert(parse_object(text), _Info)
    except (ValueError, msgspec.ValidationError) as error:
        raise DownloadError(f"the hub's listing of {repo} cannot be read; check HF_ENDPOINT") from error
    if not _COMMIT.fullmatch(info.sha):
        raise DownloadError(f"the hub gave no commit for {repo}; check HF_ENDPOINT and try again")
    files = [
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "") for file in info.siblings or ()
    ]
    damaged = [file.name for file in files if file.sha256 and not SHA256.fullmatch(file.sha256)]
    if damaged:  # it would become a file's name
        raise DownloadError(f"the hub lists {damaged[0]} of {repo} with a hash that is none; check HF_ENDPOINT")
    license_name = (info.cardData or {}).get("license")
    named = license_name if isinstance(license_name, str) else ""
    return Listing(repo, info.sha, {file.name: file for file in files}, named)


def search_repositories(words: str, limit: int) -> list[str]:
    """Return the repositories that the hub finds, most downloaded first. Raises as `list_repository` does."""
    asked = {"search": words, "sort": "downloads", "limit": str(limit)}
    text = _read(f"{_hub()}/api/models", MAX_LISTING_BYTES, params=asked)
    try:
        return [model.id for model in msgspec.json.decode(text, type=list[_Found])][:limit]
    except (ValueError, RecursionError) as error:
        raise DownloadError("the hub's answer to a search is no list of models; check HF_ENDPOINT") from error


def read_range(url: str, first: int, count: int) -> bytes:
    """Request `count` bytes of a file from byte `first` on. Returns fewer if the file ends before.

    A server that sends the whole file is read no further than needed. Raises as `list_repository` does.
    """
    return _read(url, count, first=first, headers={"Range": f"bytes={first}-{first + count - 1}"})


def _read(
    url: str,
    count: int,
    *,
    first: int = 0,
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
) -> bytes:
    """Read at most `count` bytes, from byte `first` on if the server sends the whole of a file.

    Raises HTTPError, and DownloadError if the server sends too slowly.
    """
    asked = {**build_hf_headers(), "Accept-Encoding": "identity", **(headers or {})}
    with get_session().stream("GET", url, headers=asked, params=params, timeout=SILENCE_TIMEOUT_S) as response:
        hf_raise_for_status(response)
        skipped = 0 if response.status_code == 206 else first
        found, begun = bytearray(), time.monotonic()
        for piece in response.iter_bytes():
            found += piece
            if len(found) >= skipped + count:
                break
            if time.monotonic() - begun > READ_TIMEOUT_S + len(found) / LEAST_BYTES_PER_S:
                raise DownloadError("the hub sends too slowly; check the network and HF_ENDPOINT, then try again")
        return bytes(found[skipped : skipped + count])


def _hub() -> str:
    """Return the address of the hub. Raises DownloadError."""
    return hub_endpoint() or str(constants.ENDPOINT)


def read_object(listing: Listing, name: str) -> dict[str, Any]:
    """Request a small JSON file; empty if the repository has none of that name. Raises DownloadError."""
    if name not in listing.files:
        return {}
    size = min(listing.files[name].size, MAX_JSON_BYTES)
    return json_object(read_range(listing.url(name), 0, size), name, listing.repo)


def json_object(text: bytes, name: str, repo: str) -> dict[str, Any]:
    """Parse what came of the file `name`. Raises WeightsError if it is not a JSON object."""
    try:
        return parse_object(text)
    except ValueError:
        raise WeightsError(f"{name} of {repo} is not a JSON object; pick another model") from None


@contextmanager
def plain_errors(repo: str, revision: str) -> Iterator[None]:
    """Turn the library's exceptions into a DownloadError of one sentence. Errors of the disk pass unchanged."""
    try:
        yield
    except (HTTPError, ConnectionError) as error:
        raise _plain(repo, revision, error) from error


def _plain(repo: str, revision: str, error: BaseException) -> DownloadError:
    match error:
        case GatedRepoError():
            return NotOnHub(
                f"{repo} is open only to those who accepted its license; accept it on its page and set HF_TOKEN"
            )
        case RepositoryNotFoundError() | RevisionNotFoundError():
            return NotOnHub(
                f"the hub has no repository {repo} at {revision}, or not for you; check the name and HF_TOKEN"
            )
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return NotOnHub(f"the hub does not let you read {repo}; check the name and HF_TOKEN")
        case HfHubHTTPError():
            sentence = f"the hub returned status {error.response.status_code} for {repo}; try again later"
        case _:
            sentence = f"the hub could not be reached for {repo}; check the network and HF_ENDPOINT, then try again"
    return DownloadError(sentence)
