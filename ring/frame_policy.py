"""Which frames a stage accepts, by the node that sent them. What an accepted frame does is decided elsewhere.

All stages know the ring's order, and the sender of a frame is known from its key. So one stage's node cannot act for
another's, nor any other node for either. A sender "" is a process of this user: it may send what any node may send to
this stage, but no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence

from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame
from cluster.roles import Role

KINDS = Flag.OPEN | Flag.CLOSE | Flag.TOKEN | Flag.FAILED | Flag.QUEUE_POSITION | Flag.COMPUTED | Flag.STORE
_OPENERS = (Role.MEMBER, Role.GATEWAY)


def accepted_by_first(frame: Frame, sender: str, nodes: Sequence[str], role: Role | None, owner: str | None) -> bool:
    """Return whether the first stage accepts a frame.

    It accepts openings and closes of owners, tokens and progress of the last stage, and of any stage that it failed a
    session (CLOSE) or lacks prefix blocks (STORE).

    `nodes` are those of the ring in its order, `role` the sender's. `owner` is the node that opened the frame's
    session; None if the session is unknown, so that a close of it does no harm.
    """
    kind = frame.flags & KINDS
    if kind in (Flag.TOKEN, Flag.COMPUTED):
        return sender in ("", nodes[-1])
    if kind == Flag.STORE:
        return sender in ("", *nodes)
    if kind == Flag.CLOSE:
        senders = ("", owner) if frame.stage == GATEWAY_STAGE else ("", *nodes)
        return owner is None or sender in senders
    return kind == Flag.OPEN and role in _OPENERS


def accepted_by_later(frame: Frame, sender: str, previous: str) -> bool:
    """Return whether a stage that is not the first accepts a frame: only from the node of the `previous` stage."""
    return frame.flags & KINDS in (0, Flag.OPEN, Flag.STORE, Flag.CLOSE) and sender in ("", previous)
