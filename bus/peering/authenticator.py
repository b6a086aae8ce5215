"""Whom a node lets in, and what it shows at others' join ports: the join code, the own key, and the members on file.

Decides by `cluster.membership` and keeps the outcome. No sockets here; `allow` is asked on the ZAP handler's thread.
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

BUS, JOIN = "bus", "join"  # domains of the two ports


class Authenticator:
    """Of one hub. `members` is replaced as a whole, so that another thread may read it."""

    def __init__(self, config: NodeConfig, code: JoinCode) -> None:
        """Read what is on file. Raises PrivateFileError."""
        self.pair = own_key(config)
        self.code = code
        self.keys = code.keys()
        self.join_endpoint = key_pair_of(self.keys.join_secret)
        self.members = read_members(Path(config.data_dir), code.name, strict=config.strict)
        self._config = config

    @classmethod
    def of(cls, config: NodeConfig) -> Authenticator | None:
        """The node's; None where it stands alone. Raises PrivateFileError."""
        code = own_code(config)
        return cls(config, code) if code else None

    @property
    def role(self) -> Role:
        """What the own join code gives."""
        return self.code.role

    # -- at the doors

    def allow(self, domain: str, key: bytes) -> str:
        """For `bus.net.zap`: on the bus a member's id, at the join port the key of whoever is not revoked; else
        nothing.
        """
        node_id = node_id_of(key)
        if domain == JOIN:
            return "" if self.members.is_revoked(node_id) else key.hex()
        member = self.member(node_id)
        return node_id if domain == BUS and member and hmac.compare_digest(member.key, key.hex()) else ""

    def member(self, node_id: str) -> Member | None:
        """The node, if it is let in at this moment."""
        return self.members.member(node_id)

    def knock(self, endpoint: str) -> JoinRequest:
        """What to say at another node's join port; `endpoint` is that of the own hub."""
        config, role = self._config, self.code.role
        proof = join_proof(self.keys.join, role, self.pair.public, self.join_endpoint.public)
        return JoinRequest(config.name, role, config.incarnation, endpoint, proof)

    def knocked(self, key: bytes, knock: JoinRequest, endpoint: str) -> JoinAccept:
        """Somebody knocked with `key`: let it in. Raises JoinRefused with a sentence for both sides."""
        self._check_self(key, knock.incarnation)
        if _key(knock.endpoint) != key or not self._proved(knock, key):
            raise JoinRefused(FailureCode.WRONG_CODE, f"wrong join code for cluster {self.code.name}")
        self._let_in(key, knock.name, knock.role)
        proof = accept_proof(self.keys.join, knock.role, self.pair.public, key)
        return JoinAccept(self._config.name, self._config.incarnation, endpoint, proof)

    def welcomed(self, welcome: JoinAccept) -> Member:
        """Remember the node that accepted us. Raises JoinRefused if its proof is wrong or it has to wait here."""
        key = _key(welcome.endpoint)
        self._check_self(key, welcome.incarnation)
        proof = accept_proof(self.keys.join, self.code.role, key, self.pair.public)
        if not hmac.compare_digest(proof, welcome.proof):
            raise JoinRefused(FailureCode.WRONG_CODE, f"who answers there does not belong to cluster {self.code.name}")
        return self._let_in(key, welcome.name, Role.MEMBER)

    def _proved(self, knock: JoinRequest, key: bytes) -> bool:
        if knock.role not in self.keys.join:
            return False
        return hmac.compare_digest(join_proof(self.keys.join, knock.role, key, self.join_endpoint.public), knock.proof)

    def _check_self(self, key: bytes, incarnation: int) -> None:
        if not hmac.compare_digest(key, self.pair.public):
            return
        if incarnation == self._config.incarnation:
            raise JoinRefused(FailureCode.SELF, "this is the node itself")
        raise JoinRefused(FailureCode.DUPLICATE, duplicate(self._config.name))

    def _let_in(self, key: bytes, name: str, role: Role) -> Member:
        node_id = node_id_of(key)
        self._keep(self.members.admit(node_id, name, key.hex(), role))
        return self.members.require(node_id)

    def news(self, member: Member, known_before: Membership) -> str:
        """A sentence for the owner where a known name came with a new key; else nothing."""
        others = self.members.with_same_name(member)
        if not others or member.node_id in known_before.by_id:
            return ""
        known = ", ".join(other.node_id for other in others)
        return (
            f"{member.name} joined with a new key ({member.node_id}), known before as {known}; "
            f"if that was not you: exobus cluster revoke {member.node_id}"
        )

    # -- what the owner of the cluster decides

    def revoke(self, *node_ids: str) -> tuple[str, ...]:
        """Shut nodes out; the ids of those that were not shut out already. Never this node."""
        fresh = tuple(n for n in node_ids if n not in self.members.revoked and n != self.pair.node_id)
        if fresh:
            self._keep(self.members.revoke(fresh))
        return fresh

    def approve(self, node_id: str) -> None:
        """Let in a node that waits or was revoked. Raises KeyError for one that never knocked."""
        self._keep(self.members.approve(node_id))

    def rotate(self) -> None:
        """Make a new join code. Raises PrivateFileError or JoinCodeError, and changes nothing then."""
        if self.code.role is not Role.MEMBER:
            raise JoinCodeError(f"only a member can rotate the join code of {self.code.name}; do it on one")
        self._adopt(new_join_code(self.code.name))

    def told(self, text: str) -> bool:
        """A member rotated and sent the new code: adopt it. False for one that is not for this node."""
        try:
            code = parse_join_code(text)
        except JoinCodeError:
            return False
        if (code.name, code.role) != (self.code.name, self.code.role) or code == self.code:
            return False
        self._adopt(code)
        return True

    def _adopt(self, code: JoinCode) -> None:
        write_private(self._config.code_path, code.text())
        self.code, self.keys = code, code.keys()
        self.join_endpoint = key_pair_of(self.keys.join_secret)

    def _keep(self, members: Membership) -> None:
        if members == self.members:
            return
        write_members(Path(self._config.data_dir), members)
        self.members = members


def duplicate(name: str) -> str:
    """The sentence for a second node with one key."""
    return (
        f"node {name} runs somewhere else with the same key; if its data folder was copied, delete the file `key` in "
        "one of the two, so that it becomes a node of its own"
    )


def _key(endpoint: str) -> bytes:
    try:
        return key_of(endpoint)
    except ValueError:
        raise JoinRefused(FailureCode.NO_KEY, "the end point names no key; update exobus there") from None
