"""Which keys a node accepts and what it proves to others: the join code, the node's key, and the members on file.

`cluster.membership` decides; this module checks proofs and stores the outcome. It opens no socket.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from bus.messages import JoinAccept, JoinRequest
from bus.net.endpoints import key_of
from bus.net.identity import own_code, own_key
from bus.net.keys import accept_proof, join_proof, key_pair_of, node_id_of
from bus.peering.member_store import read_members, write_members
from cluster.failures import FailureCode
from cluster.join_code import JoinCode, JoinCodeError, new_join_code, parse_join_code
from cluster.membership import JoinRefused, Member, Membership
from cluster.roles import Role
from common.config import NodeConfig
from common.private_files import write_private

BUS, JOIN = "bus", "join"  # ZAP domains of the two ports


class Authenticator:
    """The keys of one hub. `members` is replaced as a whole, so that the ZAP thread may read it."""

    def __init__(self, config: NodeConfig, code: JoinCode) -> None:
        """Read the node's key and its members. Raises PrivateFileError."""
        self.pair = own_key(config)
        self.code = code
        self.keys = code.keys()
        self.join_pair = key_pair_of(self.keys.join_secret)
        self.members = read_members(Path(config.data_dir), code.name, strict=config.strict)
        self._config = config

    @classmethod
    def of(cls, config: NodeConfig) -> Authenticator | None:
        """Return the node's authenticator, or None if the node stands alone. Raises PrivateFileError."""
        code = own_code(config)
        return cls(config, code) if code else None

    @property
    def role(self) -> Role:
        """The role of the node, which its join code gives."""
        return self.code.role

    def authenticate(self, domain: str, key: bytes) -> str:
        """Decide on a key for `bus.net.zap`, on its thread.

        On the bus it is accepted if it is an approved member's: the user id is then its id. At the join port it is
        accepted unless it was revoked, and becomes the user id itself.
        """
        node_id = node_id_of(key)
        if domain == JOIN:
            return "" if self.members.is_revoked(node_id) else key.hex()
        member = self.member(node_id)
        return node_id if domain == BUS and member and hmac.compare_digest(member.key, key.hex()) else ""

    def member(self, node_id: str) -> Member | None:
        """Return the member of that id if it is approved now."""
        return self.members.member(node_id)

    # -- the exchange at a join port

    def join_request(self, endpoint: str) -> JoinRequest:
        """Make the request to another node's join port; `endpoint` is this node's bus port."""
        role = self.role
        proof = join_proof(self.keys.join, role, self.pair.public, self.join_pair.public)
        return JoinRequest(self._config.name, role, self._config.incarnation, endpoint, proof)

    def check_request(self, key: bytes, request: JoinRequest, endpoint: str) -> JoinAccept:
        """Admit the owner of `key` if its request proves its role; `endpoint` is this node's bus port.

        Raises JoinRefused with a sentence for both sides.
        """
        self._refuse_own_key(key, request.incarnation)
        if _key(request.endpoint) != key or not self._is_proved(request, key):
            raise JoinRefused(FailureCode.WRONG_CODE, f"wrong join code for cluster {self.code.name}")
        self._admit(key, request.name, request.role)
        proof = accept_proof(self.keys.join, request.role, self.pair.public, key)
        return JoinAccept(self._config.name, self._config.incarnation, endpoint, proof)

    def check_accept(self, accept: JoinAccept) -> Member:
        """Admit the node that accepted this one. Raises JoinRefused if its proof is wrong or it is not approved."""
        key = _key(accept.endpoint)
        self._refuse_own_key(key, accept.incarnation)
        proof = accept_proof(self.keys.join, self.role, key, self.pair.public)
        if not hmac.compare_digest(proof, accept.proof):
            raise JoinRefused(
                FailureCode.WRONG_CODE, f"the node that answers there does not belong to cluster {self.code.name}"
            )
        return self._admit(key, accept.name, Role.MEMBER)

    def _is_proved(self, request: JoinRequest, key: bytes) -> bool:
        if request.role not in self.keys.join:
            return False
        proof = join_proof(self.keys.join, request.role, key, self.join_pair.public)
        return hmac.compare_digest(proof, request.proof)

    def _refuse_own_key(self, key: bytes, incarnation: int) -> None:
        if not hmac.compare_digest(key, self.pair.public):
            return
        if incarnation == self._config.incarnation:
            raise JoinRefused(FailureCode.SELF, "this is the node itself")
        raise JoinRefused(FailureCode.DUPLICATE, duplicate_key(self._config.name))

    def _admit(self, key: bytes, name: str, role: Role) -> Member:
        node_id = node_id_of(key)
        self._store(self.members.admit(node_id, name, key.hex(), role))
        return self.members.require(node_id)

    def warning_of(self, member: Member, known_before: Membership) -> str:
        """Return a sentence for the owner if a known name came with a new key, else an empty text."""
        others = self.members.with_same_name(member)
        if not others or member.node_id in known_before.by_id:
            return ""
        known = ", ".join(other.node_id for other in others)
        return (
            f"{member.name} joined with a new key ({member.node_id}), known before as {known}; "
            f"if that was not you: exobus cluster revoke {member.node_id}"
        )

    # -- decisions of the cluster's owner

    def revoke(self, *node_ids: str) -> tuple[str, ...]:
        """Revoke nodes, but never this one. Returns the ids of those that were not revoked before."""
        new = tuple(n for n in node_ids if n not in self.members.revoked and n != self.pair.node_id)
        if new:
            self._store(self.members.revoke(new))
        return new

    def approve(self, node_id: str) -> None:
        """Approve a pending or revoked node. Raises KeyError for one that is not on file."""
        self._store(self.members.approve(node_id))

    def rotate(self) -> None:
        """Make a new join code. Raises PrivateFileError or JoinCodeError, and changes nothing then."""
        if self.role is not Role.MEMBER:
            raise JoinCodeError(f"only a member can rotate the join code of {self.code.name}; do it on one")
        self._use_code(new_join_code(self.code.name))

    def adopt(self, text: str) -> bool:
        """Adopt a new join code that a member sent. Returns False if it is not for this node's cluster and role."""
        try:
            code = parse_join_code(text)
        except JoinCodeError:
            return False
        if (code.name, code.role) != (self.code.name, self.role) or code == self.code:
            return False
        self._use_code(code)
        return True

    def _use_code(self, code: JoinCode) -> None:
        write_private(self._config.code_path, code.text())
        self.code, self.keys = code, code.keys()
        self.join_pair = key_pair_of(self.keys.join_secret)

    def _store(self, members: Membership) -> None:
        if members == self.members:
            return
        write_members(Path(self._config.data_dir), members)
        self.members = members


def duplicate_key(name: str) -> str:
    """Return the sentence for the owner of a second node with the same key."""
    return (
        f"node {name} runs somewhere else with the same key; if its data folder was copied, delete the file `key` in "
        "one of the two, so that it becomes a node of its own"
    )


def _key(endpoint: str) -> bytes:
    try:
        return key_of(endpoint)
    except ValueError:
        raise JoinRefused(FailureCode.NO_KEY, "the endpoint names no key; update exobus there") from None
