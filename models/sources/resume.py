"""One file over HTTP, continued from the byte at which an earlier fetch ended. Knows neither repositories nor hashes.

`hf_hub_download` of huggingface_hub 2 keeps nothing of a fetch that ended early, so it cannot do this. Its session and
its error classes are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from threading import Event

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from models.errors import DownloadError

TRIES = 5  # in succession that bring nothing beyond what came before
PAUSE_S = 1.0
_MAY_PASS = (408, 500, 502, 503, 504)  # statuses after which the same request may succeed a moment later
_RANGE_NOT_SATISFIABLE = 416
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")


def download(url: str, part: Path, size: int, received: Callable[[int], None], cancelled: Event) -> None:
    """Bring `part`, which may hold the beginning of the file, to `size` bytes or more, and flush it to the disk.

    `received` gets the number of bytes that came, also 0; it is negative if the file has to begin anew. What has come
    stays in `part`, whatever happens. Raises DownloadError, HTTPError or OSError, and what `received` raises.
    """
    part.touch()
    failures, most = 0, part.stat().st_size
    while part.stat().st_size < size:
        received(0)  # shows what is there, and ends a fetch that was cancelled
        failure = _try(url, part, size, received)
        now = part.stat().st_size
        failures = 0 if now > most else failures + 1
        most = max(most, now)
        if failures == TRIES:
            raise failure or DownloadError(
                f"{url.rpartition('/')[2]} comes incomplete from the hub; ask for the model again to go on with it"
            )
        if failures:
            cancelled.wait(PAUSE_S)


def _try(url: str, part: Path, size: int, received: Callable[[int], None]) -> Exception | None:
    """Request what is missing. Returns the error if another try may succeed; raises any other, as `download` does."""
    try:
        _request(url, part, size, received)
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code not in _MAY_PASS:
            raise
        failure: Exception = error
        return failure
    return None


def _request(url: str, part: Path, size: int, received: Callable[[int], None]) -> None:
    """Append to `part` what the server sends. A part that the server does not continue is emptied first."""
    begun = part.stat().st_size
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # ranges count the bytes of the file itself
    if begun:
        headers["Range"] = f"bytes={begun}-"
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        if response.status_code != _RANGE_NOT_SATISFIABLE:
            hf_raise_for_status(response)
        elif response.headers.get("Content-Range") == f"bytes */{begun}":
            raise DownloadError(f"{url.rpartition('/')[2]} is shorter than the hub lists it; try again later")
        first = _CONTENT_RANGE.match(response.headers.get("Content-Range", "bytes 0-"))
        continues = response.status_code == 206 and first is not None and int(first[1]) == begun
        if begun and not continues:
            os.truncate(part, 0)
            received(-begun)
        if not continues and response.status_code != 200:
            return  # the next try requests the whole file
        with part.open("ab") as file:
            for piece in response.iter_bytes():
                file.write(piece)
                file.flush()  # a process that is killed loses none of it
                received(len(piece))
                if file.tell() > size:
                    break  # it is another file
            os.fsync(file.fileno())
