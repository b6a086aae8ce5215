"""Which kinds of message a node may send over a link, by its role. Pure; a hub asks for every message that comes in.

Work within a node crosses no link, whoever sends it: else a member could have another's engine open any file. What is
not decided here is a member's alone.
"""

from __future__ import annotations

from bus.messages import (
    MESSAGES,
    ActorDown,
    ActorHello,
    ActorStart,
    ActorStop,
    ClusterRotate,
    DownloadFailed,
    DownloadProgress,
    DownloadWant,
    EngineLoad,
    InstanceEnsure,
    JoinAccept,
    JoinRequest,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    LocalFact,
    Log,
    Message,
    PeerDial,
    PeerDrop,
    Query,
    Reply,
    RequestCancel,
    SessionFinished,
    SessionToken,
    StageDrain,
    Status,
)
from cluster.roles import Role

_OFF_LINKS: tuple[type[Message], ...] = (
    LocalFact,
    ActorHello,
    ActorStart,
    ActorStop,
    ClusterRotate,
    DownloadWant,
    EngineLoad,
    JoinRequest,
    JoinAccept,
    PeerDial,
    PeerDrop,
    StageDrain,
)
_OBSERVER: tuple[type[Message], ...] = (Query, Reply, RequestCancel, LinkHello, LinkSubscribe, LinkBye)
_GATEWAY: tuple[type[Message], ...] = (
    *_OBSERVER,
    InstanceEnsure,
    ActorDown,
    DownloadFailed,
    DownloadProgress,
    Log,
    SessionFinished,
    SessionToken,
    Status,
)
_ALLOWED: dict[Role, tuple[type[Message], ...]] = {
    Role.MEMBER: (Message,),
    Role.GATEWAY: _GATEWAY,
    Role.OBSERVER: _OBSERVER,
}


def may_send(role: Role, kind: str) -> bool:
    """Whether a node of this role may send this kind over a link. Kinds that are not known here are newer members'."""
    message = MESSAGES.get(kind)
    if message is None:
        return role is Role.MEMBER
    return issubclass(message, _ALLOWED[role]) and not issubclass(message, _OFF_LINKS)
