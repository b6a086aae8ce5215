"""What a repository of the hub holds at one commit, small reads of its files, and the hub's errors as sentences.

HF_ENDPOINT names the hub and HF_TOKEN the user; both are settings of `huggingface_hub`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from models.card import SHA256
from models.errors import DownloadError, NotOnHub
from models.sources.network import hub_endpoint

MAX_JSON_BYTES = 8 << 20
SEARCH_TIMEOUT_S = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


class RemoteFile(msgspec.Struct, frozen=True):
    """A file as the hub lists it; `sha256` is empty for the small ones that live in git itself."""

    name: str
    size: int
    sha256: str


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
    """Request the listing of a repository. Raises DownloadError, or what `plain_errors` turns into it."""
    info = HfApi(endpoint=hub_endpoint()).model_info(repo, revision=revision, files_metadata=True)
    if not _COMMIT.fullmatch(str(info.sha)):
        raise DownloadError(f"the hub gave no commit for {repo}; check HF_ENDPOINT and try again")
    files = [
        RemoteFile(file.rfilename, file.size or 0, str(file.lfs.sha256) if file.lfs else "")
        for file in info.siblings or []
    ]
    damaged = [file.name for file in files if file.sha256 and not SHA256.fullmatch(file.sha256)]
    if damaged:  # it would become a file's name
        raise DownloadError(f"the hub lists {damaged[0]} of {repo} with a hash that is none; check HF_ENDPOINT")
    license_name = getattr(info.card_data, "license", None)
    named = license_name if isinstance(license_name, str) else ""
    return Listing(repo, str(info.sha), {file.name: file for file in files}, named)


def search_repositories(words: str, limit: int) -> list[str]:
    """Return the repositories that the hub finds, most downloaded first. Raises as `list_repository` does.

    `HfApi.list_models` is not used: without a network it tries for 20 s.
    """
    url = f"{hub_endpoint() or constants.ENDPOINT}/api/models"
    asked: dict[str, str | int] = {"search": words, "sort": "downloads", "limit": limit}
    response = get_session().get(url, params=asked, headers=build_hf_headers(), timeout=SEARCH_TIMEOUT_S)
    hf_raise_for_status(response)
    try:
        return [str(model["id"]) for model in response.json()][:limit]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError("the hub's answer to a search is no list of models; check HF_ENDPOINT") from error


def read_range(url: str, first: int, count: int) -> bytes:
    """Request `count` bytes of a file from byte `first` on. Returns fewer if the file ends before.

    A server that sends the whole file is read no further than needed.
    """
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={first}-{first + count - 1}"}
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        hf_raise_for_status(response)
        skipped = 0 if response.status_code == 206 else first
        found = bytearray()
        for piece in response.iter_bytes():
            found += piece
            if len(found) >= skipped + count:
                break
        return bytes(found[skipped : skipped + count])


def read_object(listing: Listing, name: str) -> dict[str, Any]:
    """Request a small JSON file; empty if the repository has none of that name. Raises DownloadError."""
    if name not in listing.files:
        return {}
    size = min(listing.files[name].size, MAX_JSON_BYTES)
    return json_object(read_range(listing.url(name), 0, size), name, listing.repo)


def json_object(text: bytes, name: str, repo: str) -> dict[str, Any]:
    """Parse what came of the file `name`. Raises DownloadError if it is not a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DownloadError(f"{name} of {repo} is not a JSON object; pick another model")
    return value


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
            sentence = f"{repo} is open only to those who accepted its license; accept it on its page and set HF_TOKEN"
        case RepositoryNotFoundError() | RevisionNotFoundError():
            return NotOnHub(
                f"the hub has no repository {repo} at {revision}, or not for you; check the name and HF_TOKEN"
            )
        case HfHubHTTPError():
            sentence = f"the hub returned status {error.response.status_code} for {repo}; try again later"
        case _:
            sentence = f"the hub could not be reached for {repo}; check the network and HF_ENDPOINT, then try again"
    return DownloadError(sentence)
