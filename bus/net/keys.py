"""CURVE key pairs, node ids, and the proofs that nodes exchange when they join.

A node's id follows from its public key, so no node can claim the id of another.
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
REQUEST_LABEL = b"join.request"
ACCEPT_LABEL = b"join.accept"


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """A CURVE key pair, 32 raw bytes each. Its `repr` shows the public key only."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public.hex()})"

    @property
    def node_id(self) -> str:
        """The id of the node that has this pair."""
        return node_id_of(self.public)


def new_key_pair() -> KeyPair:
    """Make a random pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))


def key_pair_of(secret: bytes) -> KeyPair:
    """Return the pair of a secret key of 32 bytes."""
    return KeyPair(z85.decode(zmq.curve_public(z85.encode(secret))), secret)


def node_id_of(public: bytes) -> str:
    """Return the node id of a public key, 16 hex digits."""
    return hashlib.sha256(b"exobus node" + public).hexdigest()[:16]


def join_proof(join_keys: Mapping[Role, bytes], role: Role, public: bytes, join_port_public: bytes) -> bytes:
    """Prove to a join port that the owner of `public` has a join code for `role`. Raises KeyError without its key."""
    return hmac.digest(join_keys[role], REQUEST_LABEL + public + join_port_public, "sha256")


def accept_proof(join_keys: Mapping[Role, bytes], role: Role, member: bytes, public: bytes) -> bytes:
    """Prove to the owner of `public`, which asked to join, that the owner of `member` belongs to the cluster.

    Raises KeyError without the role's key.
    """
    return hmac.digest(join_keys[role], ACCEPT_LABEL + member + public, "sha256")


def read_key_pair(path: Path) -> KeyPair:
    """Read the pair in a file. Raises PrivateFileError."""
    try:
        return key_pair_of(bytes.fromhex(read_private(path)))
    except ValueError:
        raise PrivateFileError(f"{path} holds no key; restore it, or delete it to become a new node") from None


def own_key_pair(path: Path) -> KeyPair:
    """Read the pair in a file, or create the file with a new pair. Raises PrivateFileError."""
    if not path.exists():
        write_private(path, new_key_pair().secret.hex())
    return read_key_pair(path)
