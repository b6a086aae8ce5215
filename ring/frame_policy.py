"""Which frames a stage believes, by the node that sent them. Pure; what a frame then does is the stage's business.

A ring's order is known to all its stages, and who sent a frame is known from a key. So one stage's node cannot act for
another's, nor a stranger for either.
"""

from __future__ import annotations

from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame
from cluster.roles import Role
from ring.types import RingView

_KINDS = Flag.OPEN | Flag.CLOSE | Flag.TOKEN | Flag.FAILED | Flag.PLACE | Flag.THROUGH | Flag.KEEP
_OPENERS = (Role.MEMBER, Role.GATEWAY)


def accepts(frame: Frame, sender: str, role: Role | None, place: RingView, owner: str | None) -> bool:
    """Whether a stage at `place` takes a frame from a node of that role. `owner` is the node that opened its session;
    None where nobody did, so that an end of it does no harm.

    A sender "" is a process of this user: it is believed to be whoever may send such a frame, but no more than that.
    """
    kind = frame.flags & _KINDS
    if place.index > 0:
        return kind in (0, Flag.OPEN, Flag.KEEP, Flag.CLOSE) and sender in ("", place.nodes[place.index - 1])
    if kind in (Flag.TOKEN, Flag.THROUGH):
        return sender in ("", place.nodes[-1])
    if kind == Flag.CLOSE:
        of_ring = frame.stage != GATEWAY_STAGE
        return owner is None or sender in (("", *place.nodes) if of_ring else ("", owner))
    return kind == Flag.OPEN and role in _OPENERS


def may_answer(sender: str, owner: str, place: RingView) -> bool:
    """Whether a session that `sender` opens here may be answered to `owner`, whose end points it named.

    At the first stage to nobody but itself; another stage has it from a stage that saw to that.
    """
    return not sender or (bool(owner) if place.index > 0 else owner == sender)
