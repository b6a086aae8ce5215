"""What a hub does for the cluster's owner: tell who belongs to it, shut out, let in, make a new join code.

Decisions reach every linked hub, and every other one with the next hello. No sockets of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from bus.messages import (
    ClusterChanged,
    ClusterCode,
    ClusterRotate,
    ClusterRotated,
    LinkBye,
    MemberApprove,
    MemberRevoke,
    MembersGet,
    MembersState,
    Message,
    Reply,
    RequestDone,
    RequestFailed,
)
from bus.peering.authenticator import Authenticator
from bus.peering.links import Links
from bus.peering.peering import Peering
from cluster.failures import FailureCode
from cluster.join_code import JoinCodeError
from cluster.membership import MemberStatus
from cluster.roles import Role
from common.private_files import PrivateFileError

logger = logging.getLogger(__name__)


class ClusterAdmin:
    """Serves `members.*`, `member.*` and `cluster.*`. Used on the hub's thread only."""

    def __init__(
        self, door: Authenticator, outside: Peering, links: Links, announce: Callable[[Message], None]
    ) -> None:
        self._door, self._outside, self._links, self._announce = door, outside, links, announce

    def serve(self, work: Message) -> Reply | None:
        """The answer to an actor or a command of the own node; None for work that is not of this kind."""
        if isinstance(work, MemberRevoke | MemberApprove) and self._door.role is not Role.MEMBER:
            cluster = self._door.code.name
            return RequestFailed(FailureCode.FORBIDDEN, f"only a member decides who belongs to {cluster}; do it on one")
        match work:
            case MembersGet():
                linked = tuple(peer.node_id for peer in self._links.standing())
                return MembersState(self._door.code.name, tuple(self._door.members.by_id.values()), linked)
            case MemberRevoke(node_id):
                return self._own_revoke(node_id)
            case MemberApprove(node_id):
                return self._own_approve(node_id)
            case ClusterRotate():
                return self._rotate()
        return None

    def hear(self, work: Message | None) -> bool:
        """What a member's hub says; false for work that is not of this kind."""
        match work:
            case MemberRevoke(node_id):
                self.revoke((node_id,))
            case MemberApprove(node_id):
                if node_id in self._door.members.by_id:
                    self._door.approve(node_id)
            case ClusterCode(code):
                if self._door.told(code):
                    self._changed()
            case _:
                return False
        return True

    def revoke(self, node_ids: Iterable[str]) -> None:
        """Shut out, and cut the links that stand."""
        for node_id in self._door.revoke(*node_ids):
            logger.warning("node %s is shut out: its key was revoked", node_id)
            self._links.cut(node_id, LinkBye(), "its key was revoked")

    def _own_revoke(self, node_id: str) -> Reply:
        if node_id == self._door.pair.node_id:
            return RequestFailed(FailureCode.SELF, "a node cannot revoke itself; do it on another member")
        self.revoke((node_id,))
        self._links.tell_all(MemberRevoke(node_id))
        return RequestDone()

    def _own_approve(self, node_id: str) -> Reply:
        try:
            self._door.approve(node_id)
        except KeyError:
            return RequestFailed(
                FailureCode.UNKNOWN_NODE, f"no node {node_id} ever knocked here; see `exobus cluster ls`"
            )
        self._links.tell_all(MemberApprove(node_id))
        return RequestDone()

    def _rotate(self) -> Reply:
        try:
            self._door.rotate()
        except (JoinCodeError, PrivateFileError) as error:
            return RequestFailed(FailureCode.NOT_ROTATED, str(error))
        told = {
            peer.node_id: peer.name
            for peer in self._links.standing()
            if self._links.tell(peer.node_id, ClusterCode(self._door.code.invite(peer.role).text()))
        }
        self._changed()
        members = self._door.members.by_id.values()
        missed = (m.name for m in members if m.status is MemberStatus.APPROVED and m.node_id not in told)
        return ClusterRotated(tuple(sorted(told.values())), tuple(sorted(missed)))

    def _changed(self) -> None:
        self._outside.rotated()
        self._announce(ClusterChanged())
