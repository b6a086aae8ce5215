"""Decisions about the members of a cluster: list, revoke and approve them, and change the join code.

A decision reaches every linked hub at once, and every other one with the next hello.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from bus.hub_context import HubContext
from bus.messages import (
    ClusterChanged,
    ClusterCode,
    ClusterRotate,
    ClusterRotated,
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
from cluster.failures import FailureCode
from cluster.join_code import JoinCodeError
from cluster.membership import MemberStatus
from cluster.roles import Role
from common.private_files import PrivateFileError

logger = logging.getLogger(__name__)


class ClusterAdmin:
    """Serves `members.*`, `member.*` and `cluster.*`. Used on the hub's thread only.

    `code_changed` is called when the node has a new join code.
    """

    def __init__(
        self, context: HubContext, authenticator: Authenticator, links: Links, code_changed: Callable[[], None]
    ) -> None:
        self._context, self._authenticator, self._links = context, authenticator, links
        self._code_changed = code_changed

    def serve_actor(self, work: Message) -> Reply:
        """Serve work of an actor of this node."""
        if isinstance(work, MemberRevoke | MemberApprove) and self._authenticator.role is not Role.MEMBER:
            cluster = self._authenticator.code.name
            return RequestFailed(FailureCode.FORBIDDEN, f"only a member decides who belongs to {cluster}; do it on one")
        match work:
            case MembersGet():
                linked = tuple(peer.node_id for peer in self._links.peers())
                members = tuple(self._authenticator.members.by_id.values())
                return MembersState(self._authenticator.code.name, members, linked)
            case MemberRevoke(node_id):
                return self._revoke_here(node_id)
            case MemberApprove(node_id):
                return self._approve_here(node_id)
            case ClusterRotate():
                return self._rotate()
        raise TypeError(f"{work!r} is not about the cluster")

    def serve_hub(self, message: Message | None) -> bool:
        """Carry out a decision that another member's hub sent. Returns False if the message is none."""
        match message:
            case MemberRevoke(node_id):
                self.revoke((node_id,))
            case MemberApprove(node_id):
                if node_id in self._authenticator.members.by_id:
                    self._authenticator.approve(node_id)
            case ClusterCode(code):
                if self._authenticator.adopt(code):
                    self._use_new_code()
            case _:
                return False
        return True

    def revoke(self, node_ids: Iterable[str]) -> None:
        """Revoke nodes and end their links."""
        for node_id in self._authenticator.revoke(*node_ids):
            logger.warning("the key of node %s was revoked", node_id)
            self._links.cut(node_id, "its key was revoked")

    def _revoke_here(self, node_id: str) -> Reply:
        if node_id == self._authenticator.pair.node_id:
            return RequestFailed(FailureCode.SELF, "a node cannot revoke itself; do it on another member")
        self.revoke((node_id,))
        self._links.send_all(MemberRevoke(node_id))
        return RequestDone()

    def _approve_here(self, node_id: str) -> Reply:
        try:
            self._authenticator.approve(node_id)
        except KeyError:
            return RequestFailed(
                FailureCode.UNKNOWN_NODE, f"no node {node_id} ever asked to join here; see `exobus cluster ls`"
            )
        self._links.send_all(MemberApprove(node_id))
        return RequestDone()

    def _rotate(self) -> Reply:
        try:
            self._authenticator.rotate()
        except (JoinCodeError, PrivateFileError) as error:
            return RequestFailed(FailureCode.NOT_ROTATED, str(error))
        code = self._authenticator.code
        updated = {
            peer.node_id: peer.name
            for peer in self._links.peers()
            if self._links.send(peer.node_id, ClusterCode(code.invite(peer.role).text()))
        }
        self._use_new_code()
        members = self._authenticator.members.by_id.values()
        unreachable = [m.name for m in members if m.status is MemberStatus.APPROVED and m.node_id not in updated]
        return ClusterRotated(tuple(sorted(updated.values())), tuple(sorted(unreachable)))

    def _use_new_code(self) -> None:
        self._code_changed()
        self._context.publish(ClusterChanged())
