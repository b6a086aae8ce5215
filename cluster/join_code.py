"""The join code: a cluster's name, a role and a secret as one line that people can copy. Knows no files.

A member's code holds the cluster's secret. The code of a gateway or an observer holds two keys derived from it, from
which neither the secret nor another role's key can be derived.

    home-B4XG6YTV-…        name, then base32 of: version and role (1 byte), secret (32), checksum over all of it (2)

Keys are derived with keyed BLAKE2b and a personalization string for each purpose, as in libsodium's crypto_kdf.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.roles import Role

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*", re.ASCII)
_CODE = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)-(?P<letters>(?:[A-Z2-7]{8}-){6}[A-Z2-7]{8})", re.ASCII)
_LOOK_ALIKES = str.maketrans("018", "OIB")  # base32 has none of these digits
_ROLES = {0x10: Role.MEMBER, 0x11: Role.GATEWAY, 0x12: Role.OBSERVER}  # version 1, then the role
_LETTERS = 56
MAX_CLUSTER_NAME = 32


class JoinCodeError(ValueError):
    """A text is not a join code, or a code cannot be used so; the message is one sentence with the next step."""


@dataclass(frozen=True, slots=True, repr=False)
class JoinCode:
    """A cluster's name, what its holder may do, and 32 secret bytes. Its `repr` shows no secret."""

    name: str
    role: Role
    secret: bytes

    def __repr__(self) -> str:
        return f"JoinCode({self.name!r}, {self.role.value})"

    def text(self) -> str:
        """Return the line to copy."""
        kind = next(kind for kind, role in _ROLES.items() if role is self.role)
        body = bytes([kind]) + self.secret
        letters = base64.b32encode(body + _checksum(self.name, body)).decode()
        return "-".join((self.name, *(letters[at : at + 8] for at in range(0, _LETTERS, 8))))

    def invite(self, role: Role) -> JoinCode:
        """Return the code for `role`. Raises JoinCodeError if this one is not a member's."""
        if self.role is not Role.MEMBER:
            raise JoinCodeError(f"a join code for the role {self.role} cannot invite; ask a member of {self.name}")
        return self if role is Role.MEMBER else JoinCode(self.name, role, self._shared + self._role_part(role))

    def keys(self) -> ClusterKeys:
        """Derive the keys that a holder of the code has."""
        base = self._shared
        roles = tuple(Role) if self.role is Role.MEMBER else (self.role,)
        return ClusterKeys(
            self.name,
            self.role,
            _derived(base, "id", self.name)[:8].hex(),
            _derived(base, "join port", self.name),
            _derived(base, "beacon", self.name),
            {role: _derived(self._role_part(role), "join", self.name) for role in roles},
        )

    @property
    def _shared(self) -> bytes:
        """The part of the secret that every holder of a code has."""
        return _derived(self.secret, "open", self.name)[:16] if self.role is Role.MEMBER else self.secret[:16]

    def _role_part(self, role: Role) -> bytes:
        """Return the part of the secret that only members and holders of a code of that role have."""
        return _derived(self.secret, role, self.name)[:16] if self.role is Role.MEMBER else self.secret[16:]


@dataclass(frozen=True, slots=True, repr=False)
class ClusterKeys:
    """The keys derived from a join code.

    `id` is public and identifies the cluster. `join_secret` is the CURVE secret key of the join ports, `beacon` the key
    of the beacons' seal, and `join` has for each role the key with which a node proves it.
    """

    name: str
    role: Role
    id: str
    join_secret: bytes
    beacon: bytes
    join: Mapping[Role, bytes]


def new_join_code(name: str) -> JoinCode:
    """Make the member code of a new cluster. Raises JoinCodeError if the name is not valid."""
    if not _NAME.fullmatch(name) or len(name) > MAX_CLUSTER_NAME:
        raise JoinCodeError(
            f"{name!r} is not a cluster name; use small letters, digits and single dashes, at most {MAX_CLUSTER_NAME}"
        )
    return JoinCode(name, Role.MEMBER, secrets.token_bytes(32))


def parse_join_code(text: str) -> JoinCode:
    """Read a code as people type it: in any case, with any spacing, and 0, 1 and 8 for O, I and B.

    Raises JoinCodeError.
    """
    code = _CODE.fullmatch(_normalized(text))
    if code is None or len(code["name"]) > MAX_CLUSTER_NAME:
        raise JoinCodeError("that is not a join code; copy the whole line that `exobus cluster invite` prints")
    whole = base64.b32decode(code["letters"].replace("-", ""))
    body, checksum = whole[:-2], whole[-2:]
    role = _ROLES.get(body[0])
    if checksum != _checksum(code["name"], body):
        raise JoinCodeError("the join code has a typing mistake; copy the whole line again")
    if role is None:
        raise JoinCodeError("the join code is of a newer exobus; update this one")
    return JoinCode(code["name"], role, body[1:])


def _normalized(text: str) -> str:
    """Return the name in lower case and the letters in groups of eight, whatever was typed between them."""
    compact = "".join(text.split())
    at, letters = len(compact), 0
    while at and letters < _LETTERS:
        at -= 1
        letters += compact[at] != "-"
    rest = compact[at:].replace("-", "").upper().translate(_LOOK_ALIKES)
    return "-".join((compact[:at].rstrip("-").lower(), *(rest[i : i + 8] for i in range(0, len(rest), 8))))


def _checksum(name: str, body: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + body).digest()[:2]


def _derived(key: bytes, purpose: str, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=key, person=f"exobus {purpose}".encode(), digest_size=32).digest()
