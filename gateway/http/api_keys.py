"""The API keys of a gateway, read from a file and compared in constant time.

The file is read again when it changes. A faulty file can only take keys away: with a bad line, the keys that it still
lists remain; if it is missing or open to others, none do.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from pathlib import Path
from typing import NamedTuple

from bus.process import CannotStart
from common.config import is_loopback
from common.private_files import is_private

MIN_KEY = 16
MAX_KEY = 256
MAX_FILE_BYTES = 64 << 10

logger = logging.getLogger(__name__)


class ApiKeyFileError(Exception):
    """The file cannot be used as it is; the message is one sentence that names it and quotes nothing from it."""


class KeyFile(NamedTuple):
    """The well-formed keys of a file, and what is wrong with it (empty: nothing)."""

    keys: tuple[str, ...]
    fault: str


def parse_keys(text: str) -> KeyFile:
    """Parse one key a line; empty lines and those that begin with `#` are skipped."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    written = [(number, line) for number, line in lines if line and not line.startswith("#")]
    keys = tuple(line for _, line in written if _well_formed(line))
    bad = [number for number, line in written if not _well_formed(line)]
    if bad:
        return KeyFile(keys, f"line {bad[0]} is not a key: a key has {MIN_KEY} to {MAX_KEY} visible ASCII characters")
    return KeyFile(keys, "" if keys else "there is no key in it; add one with `exobus key FILE`")


def _well_formed(key: str) -> bool:
    return MIN_KEY <= len(key) <= MAX_KEY and all("!" <= letter <= "~" for letter in key)


def read_keys(path: Path) -> KeyFile:
    """Read a file. Raises ApiKeyFileError if it cannot be read, or others can read or write it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ApiKeyFileError(f"the API keys in {path} cannot be read ({error.strerror})") from None
    if not is_private(status):
        fault = "belong to another user" if status.st_uid != os.getuid() else "can be read or written by others"
        raise ApiKeyFileError(f"the API keys in {path} {fault}; run: chmod 600 {path}")
    if len(data) > MAX_FILE_BYTES:
        raise ApiKeyFileError(
            f"the file of API keys {path} is larger than {MAX_FILE_BYTES >> 10} KiB; it holds too many"
        )
    return parse_keys(data.decode("utf-8", "replace"))


class ApiKeys:
    """The keys that clients may use. Without a file there are none, and none is required."""

    def __init__(self, path: Path | None) -> None:
        """Read the file. Raises CannotStart if it cannot be used."""
        self.required = path is not None
        self._path = path
        self._read_state = _FileState()
        self._digests: frozenset[bytes] = frozenset()
        if path is None:
            return
        self._read_state = _state_of(path)
        try:
            keys, fault = read_keys(path)
        except ApiKeyFileError as error:
            raise CannotStart(str(error)) from None
        if fault:
            raise CannotStart(f"the API keys in {path} cannot be used: {fault}")
        self._digests = frozenset(map(_digest, keys))

    def accepts(self, key: str) -> bool:
        """Return whether this is one of the keys; takes the same time for every key that is not."""
        self._read_again()
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0

    def _read_again(self) -> None:
        if self._path is None or (state := _state_of(self._path)) == self._read_state:
            return
        self._read_state = state
        try:
            keys, fault = read_keys(self._path)
        except ApiKeyFileError as error:
            keys, fault = (), str(error)
        digests = frozenset(map(_digest, keys))
        self._digests = digests & self._digests if fault else digests
        if fault:
            sentence = "%d API keys are left, and none can be added until %s is right again: %s"
            logger.warning(sentence, len(self._digests), self._path, fault)
        else:
            logger.info("the file of API keys has changed; it holds %d", len(keys))


class _FileState(NamedTuple):
    """The state of a file when it was read last; zeros if there was none."""

    modified_ns: int = 0
    changed_ns: int = 0
    size: int = 0
    inode: int = 0


def _state_of(path: Path) -> _FileState:
    try:
        found = path.stat()
    except OSError:
        return _FileState()
    return _FileState(found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def check_keys_required(host: str, keys: ApiKeys) -> None:
    """Raise CannotStart if a gateway that listens on `host` would serve any machine without a key."""
    if not keys.required and not is_loopback(host):
        raise CannotStart(
            f"the API would be open to every machine that reaches {host}; make a key with `exobus key FILE` and pass "
            "--api-keys FILE, or listen on 127.0.0.1"
        )
