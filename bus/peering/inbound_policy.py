"""What comes over a link, looked at before anything is done with it: by key, sender, role and number. No sockets."""

from __future__ import annotations

from collections.abc import Sequence

from bus.messages import Header
from bus.peering.authenticator import Authenticator
from bus.peering.permissions import may_send
from bus.sequencing import ReplayFilter
from bus.wire import WireError, decode_header


class Forbidden(WireError):
    """A member's message that its role may not send."""

    def __init__(self, header: Header, role: str) -> None:
        super().__init__("not allowed", f"{header.kind} by a node of the role {role}")
        self.header = header
        self.sentence = f"the role {role} may not send {header.kind}; join with a code of another role"


class InboundPolicy:
    """Of one hub. It remembers what was heard of each linked node."""

    def __init__(self, door: Authenticator) -> None:
        self._door = door
        self._sequences = ReplayFilter()

    def check(self, node_id: str, frames: Sequence[bytes]) -> Header:
        """The header of a message that came over the connection of `node_id`. Raises WireError, Forbidden among them.

        A node is believed while it is let in, for its own actors, in what its role may say, and once.
        """
        member = self._door.member(node_id)
        if member is None:
            raise WireError("foreign")
        header = decode_header(frames)
        if header.sender.partition("/")[0] != node_id:
            raise WireError("sender")
        if not may_send(member.role, header.kind):
            raise Forbidden(header, member.role)
        if not self._sequences.fresh(header, frames[0].decode()):
            raise WireError("replayed")
        return header

    def forget(self, node_id: str) -> None:
        """The link to a node ended."""
        self._sequences.forget(node_id)
