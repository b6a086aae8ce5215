"""Which keys belong to the cluster: who is let in, who is shut out, who waits. Pure; no sockets, no clock, no files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from cluster.failures import FailureCode
from cluster.roles import Role
from common.limits import MAX_NODES, Name

MOST = MAX_NODES  # nodes remembered; whoever holds the code could else fill our memory with keys


class MemberStatus(StrEnum):
    """What a node is to us."""

    APPROVED = "let in"
    PENDING = "waiting"  # strict: until somebody approves its key
    REVOKED = "revoked"


class Member(msgspec.Struct, frozen=True):
    """A node as it showed itself at a join port. `key` is its public key in hex; empty for one revoked unseen."""

    node_id: Name
    name: Name
    key: Name
    role: Role = Role.MEMBER
    standing: MemberStatus = MemberStatus.APPROVED


class JoinRefused(Exception):
    """Somebody stays outside; `code` is for programs, the message a sentence for both sides."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Membership:
    """Nodes by id. With `strict`, only approved keys are let in."""

    cluster: str
    strict: bool = False
    by_id: dict[str, Member] = field(default_factory=dict)

    def let_in(self, node_id: str) -> Member | None:
        """The member of that id, if it is let in."""
        member = self.by_id.get(node_id)
        return member if member and member.standing is MemberStatus.APPROVED else None

    def judge(self, node_id: str, name: str, key: str, role: Role) -> Membership:
        """A node proved at the join port that it holds a code of `role`: the members with it let in, or made to wait.

        Raises JoinRefused for a revoked one. One that has to wait is in the result; `check` refuses it.
        """
        known = self.by_id.get(node_id)
        if known is None and len(self.by_id) >= MOST:
            raise JoinRefused(
                FailureCode.FULL, f"cluster {self.cluster} remembers {MOST} nodes already; forget some first"
            )
        standing = known.standing if known else MemberStatus.PENDING if self.strict else MemberStatus.APPROVED
        judged = self._with(Member(node_id, name, key, role, standing))
        if standing is MemberStatus.REVOKED:
            raise JoinRefused(
                FailureCode.REVOKED, f"the key of {name} ({node_id}) was revoked in cluster {self.cluster}"
            )
        return judged

    def check(self, node_id: str) -> Member:
        """The member, if it is let in. Raises JoinRefused with a sentence where it is not."""
        member = self.by_id.get(node_id)
        if member is None or member.standing is MemberStatus.REVOKED:
            raise JoinRefused(FailureCode.REVOKED, f"node {node_id} has no place in cluster {self.cluster}")
        if member.standing is MemberStatus.PENDING:
            known = " whose name is known under another key" if self.namesakes(member) else ""
            raise JoinRefused(
                FailureCode.UNAPPROVED,
                f"cluster {self.cluster} is strict and {member.name} is a new key{known}; approve it there with "
                f"`exobus cluster approve {node_id}`",
            )
        return member

    def namesakes(self, member: Member) -> tuple[Member, ...]:
        """Other keys that are let in under the same name."""
        return tuple(
            other
            for other in self.by_id.values()
            if other.name == member.name and other.node_id != member.node_id and other.standing is MemberStatus.APPROVED
        )

    def approve(self, node_id: str) -> Membership:
        """Let in a node that waits or was revoked. Raises KeyError for one that never knocked."""
        return self._with(msgspec.structs.replace(self.by_id[node_id], standing=MemberStatus.APPROVED))

    def revoke(self, node_ids: Iterable[str]) -> Membership:
        """Shut nodes out, known or not; unknown ones as long as there is room."""
        members = self
        for node_id in node_ids:
            if node_id not in members.by_id and len(members.by_id) >= MOST:
                continue
            known = members.by_id.get(node_id) or Member(node_id, "", "")
            members = members._with(msgspec.structs.replace(known, standing=MemberStatus.REVOKED))
        return members

    def is_revoked(self, node_id: str) -> bool:
        """Whether a node is shut out."""
        known = self.by_id.get(node_id)
        return known is not None and known.standing is MemberStatus.REVOKED

    @property
    def revoked(self) -> tuple[str, ...]:
        """The ids of all who are shut out."""
        return tuple(sorted(m.node_id for m in self.by_id.values() if m.standing is MemberStatus.REVOKED))

    def _with(self, member: Member) -> Membership:
        return replace(self, by_id={**self.by_id, member.node_id: member})
