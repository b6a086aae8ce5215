"""What a node may do in a cluster. Its join code decides; `bus.peering.permissions` says which messages that means."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """A member holds layers and places models; a gateway sends chats; an observer receives facts and may query."""

    MEMBER = "member"
    GATEWAY = "gateway"
    OBSERVER = "observer"
