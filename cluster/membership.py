"""Which keys belong to the cluster: a pure value of approved, pending and revoked nodes.

It does not know how a node proves that it holds a join code (`bus.peering.authenticator`) or where members are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from cluster.failures import FailureCode
from cluster.roles import Role
from common.limits import MAX_NODES, Name

MAX_MEMBERS = MAX_NODES  # a holder of the join code must not fill our memory with keys


class MemberStatus(StrEnum):
    """Whether a key may link to this node."""

    APPROVED = "approved"
    PENDING = "pending"  # `--strict`: until `exobus cluster approve` names its key
    REVOKED = "revoked"


class Member(msgspec.Struct, frozen=True):
    """A node that joined. `key` is its public key in hex; empty for a node that was revoked before it ever joined."""

    node_id: Name
    name: Name
    key: Name
    role: Role
    status: MemberStatus  # without a default: a file or message that lacks it must not approve a key


class JoinRefused(Exception):
    """A node may not join. `code` is for programs, the message is a sentence for the owners of both nodes."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Membership:
    """Nodes by id. With `strict`, a new key is pending until it is approved."""

    cluster: str
    strict: bool = False
    by_id: dict[str, Member] = field(default_factory=dict)

    def member(self, node_id: str) -> Member | None:
        """Return the approved member of that id, if there is one."""
        member = self.by_id.get(node_id)
        return member if member and member.status is MemberStatus.APPROVED else None

    def admit(self, node_id: str, name: str, key: str, role: Role) -> Membership:
        """Add a node that proved that it holds a join code of `role`, approved or, in a strict cluster, pending.

        A node that is known keeps its status. Raises JoinRefused if it was revoked or there is no room. A pending node
        is in the result, and `require` refuses it.
        """
        known = self.by_id.get(node_id)
        if known is None and len(self.by_id) >= MAX_MEMBERS:
            raise JoinRefused(
                FailureCode.FULL, f"cluster {self.cluster} has {MAX_MEMBERS} nodes on file already; remove some first"
            )
        if known and known.status is MemberStatus.REVOKED:
            raise JoinRefused(
                FailureCode.REVOKED,
                f"the key of {name} ({node_id}) was revoked in cluster {self.cluster}; "
                f"`exobus cluster approve {node_id}` approves it again",
            )
        status = known.status if known else MemberStatus.PENDING if self.strict else MemberStatus.APPROVED
        return self._with(Member(node_id, name, key, role, status))

    def require(self, node_id: str) -> Member:
        """Return the approved member of that id. Raises JoinRefused if it is unknown, pending or revoked."""
        member = self.by_id.get(node_id)
        if member is None or member.status is MemberStatus.REVOKED:
            raise JoinRefused(FailureCode.REVOKED, f"node {node_id} is not a member of cluster {self.cluster}")
        if member.status is MemberStatus.PENDING:
            known = " (another key has this name)" if self.with_same_name(member) else ""
            raise JoinRefused(
                FailureCode.UNAPPROVED,
                f"cluster {self.cluster} is strict and the key of {member.name} is new{known}; approve it there with "
                f"`exobus cluster approve {node_id}`",
            )
        return member

    def with_same_name(self, member: Member) -> tuple[Member, ...]:
        """Return the other approved members that have the same name."""
        return tuple(
            other
            for other in self.by_id.values()
            if other.name == member.name and other.node_id != member.node_id and other.status is MemberStatus.APPROVED
        )

    def approve(self, node_id: str) -> Membership:
        """Approve a pending or revoked node. Raises KeyError for one that never joined and was never revoked."""
        return self._with(msgspec.structs.replace(self.by_id[node_id], status=MemberStatus.APPROVED))

    def revoke(self, node_ids: Iterable[str]) -> Membership:
        """Revoke nodes, known or not; unknown ones only as long as there is room."""
        members = self
        for node_id in node_ids:
            if node_id not in members.by_id and len(members.by_id) >= MAX_MEMBERS:
                continue
            known = members.by_id.get(node_id) or Member(node_id, "", "", Role.MEMBER, MemberStatus.REVOKED)
            members = members._with(msgspec.structs.replace(known, status=MemberStatus.REVOKED))
        return members

    def is_revoked(self, node_id: str) -> bool:
        """Return whether a node was revoked."""
        known = self.by_id.get(node_id)
        return known is not None and known.status is MemberStatus.REVOKED

    @property
    def revoked(self) -> tuple[str, ...]:
        """The ids of all revoked nodes, sorted."""
        return tuple(sorted(m.node_id for m in self.by_id.values() if m.status is MemberStatus.REVOKED))

    def _with(self, member: Member) -> Membership:
        return replace(self, by_id={**self.by_id, member.node_id: member})
