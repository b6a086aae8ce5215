"""What a node may do in a cluster, by the join code that it came with. Pure; which message is which is `bus`'s."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """A member holds layers and places models; a gateway sends chats; an observer hears facts and asks."""

    MEMBER = "member"
    GATEWAY = "gateway"
    OBSERVER = "observer"
