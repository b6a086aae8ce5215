"""Which messages of another node a hub accepts: checked by key, sender, role and sequence number."""

from __future__ import annotations

from collections.abc import Sequence

from bus.address import Address
from bus.messages import Header
from bus.peering.authenticator import Authenticator
from bus.peering.permissions import may_send
from bus.sequencing import ReplayFilter
from bus.wire import WireError, decode_header, decode_to


class Forbidden(WireError):
    """A message that its sender's role may not send. `sentence` is for the sender."""

    def __init__(self, header: Header, role: str) -> None:
        super().__init__("not allowed", f"{header.kind} by a node of the role {role}")
        self.header = header
        self.sentence = f"the role {role} may not send {header.kind}; join with a code of another role"


class InboundPolicy:
    """The policy of one hub for all its links. It remembers the last sequence numbers of each linked node."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._replays = ReplayFilter()

    def check(self, node_id: str, frames: Sequence[bytes]) -> Header:
        """Return the header of a message that came over a connection of `node_id`.

        Raises WireError if the node is no approved member now, or names a sender of another node, or sends what it
        sent before; and Forbidden if its role may not send this kind.
        """
        member = self._authenticator.member(node_id)
        if member is None:
            raise WireError("foreign")
        header = decode_header(frames)
        if Address.parse(header.sender).node != node_id:
            raise WireError("sender")
        if not may_send(member.role, header.kind):
            raise Forbidden(header, member.role)
        if not self._replays.accept(header, str(decode_to(frames))):
            raise WireError("replayed")
        return header

    def forget(self, node_id: str) -> None:
        """Forget the sequence numbers of a node that is not linked any more."""
        self._replays.forget(node_id)
