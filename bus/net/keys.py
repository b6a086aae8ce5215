"""CURVE key pairs: a node's own, kept in a file that only its user can read, and a cluster's join port.

A node's id follows from its public key, so nobody can claim another's. No sockets here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from cluster.roles import Role
from common.private_files import PrivateFileError, read_private, write_private

KEY_BYTES = 32


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
    """The pair kept in a file. Raises PrivateFileError."""
    try:
        return key_pair_of(bytes.fromhex(read_private(path)))
    except ValueError:
        raise PrivateFileError(f"{path} holds no key; restore it, or delete it to become a new node") from None


def own_key_pair(path: Path) -> KeyPair:
    """The pair kept in a file; a new one is put there where there is none. Raises PrivateFileError."""
    if not path.exists():
        write_private(path, new_key_pair().secret.hex())
    return read_key_pair(path)
