"""CURVE key pairs: a node's own, kept in a file that only its user can read, and a cluster's join port.

A node's id follows from its public key, so nobody can claim another's. No sockets here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from cluster.roles import Role

KEY_BYTES = 32


class KeyFileError(OSError):
    """A file of secrets cannot be used; the message is one sentence with the next step."""


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """A CURVE key pair, 32 raw bytes each. Its `repr` shows the public half only."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public.hex()})"

    @property
    def node_id(self) -> str:
        """The id of the node that has this pair."""
        return node_id_of(self.public)


def new_key_pair() -> KeyPair:
    """A random pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


def key_pair_of(secret: bytes) -> KeyPair:
    """The pair of a 32-byte secret."""
    return KeyPair(z85.decode(zmq.curve_public(z85.encode(secret))), secret)


def node_id_of(public: bytes) -> str:
    """The node id of a public key, 16 hex digits."""
    return hashlib.sha256(b"exobus node" + public).hexdigest()[:16]


def join_proof(join: Mapping[Role, bytes], role: Role, public: bytes, join_endpoint: bytes) -> bytes:
    """What shows a join port that the owner of `public` holds a join code of `role`. Raises KeyError."""
    return hmac.digest(join[role], b"knock" + public + join_endpoint, "sha256")


def accept_proof(join: Mapping[Role, bytes], role: Role, member: bytes, public: bytes) -> bytes:
    """What shows who knocked that the owner of `member` belongs to the cluster. Raises KeyError."""
    return hmac.digest(join[role], b"welcome" + member + public, "sha256")


def read_key_pair(path: Path) -> KeyPair:
    """The pair kept in a file. Raises KeyFileError."""
    try:
        return key_pair_of(bytes.fromhex(read_secret(path)))
    except ValueError:
        raise KeyFileError(f"{path} holds no key; restore it, or delete it to become a new node") from None


def own_key_pair(path: Path) -> KeyPair:
    """The pair kept in a file; a new one is put there where there is none. Raises KeyFileError."""
    if not path.exists():
        write_secret(path, new_key_pair().secret.hex())
    return read_key_pair(path)


def read_secret(path: Path, most: int = 4096) -> str:
    """The first `most` bytes of a file that only this user may read. Raises KeyFileError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & 0o077:
                raise KeyFileError(f"{path} can be read by others; make it yours alone with: chmod 600 {path}")
            return file.read(most).decode("utf-8", "replace").strip()
    except KeyFileError:
        raise
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read ({error.strerror}); check whose it is") from None


def write_secret(path: Path, line: str) -> None:
    """Put one line into a file, mode 0600, whole or not at all. Raises KeyFileError."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise KeyFileError(f"{path} cannot be written ({error.strerror}); check the folder") from None
