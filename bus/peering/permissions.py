"""Which kinds of message a node may send over a link, by its role. A hub checks every incoming message.

Work that belongs inside a node crosses no link, not even from a member: it could else make the engine of another node
open any file. A kind that is in none of the tables is for members only.
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
    EngineDescribe,
    EngineLoad,
    InstanceEnsure,
    InstanceUnload,
    JoinAccept,
    JoinRequest,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    LocalFact,
    Log,
    Message,
    ModelDescribe,
    PeerDial,
    PeerDrop,
    Query,
    Reply,
    RequestCancel,
    SessionCheck,
    SessionFinished,
    SessionToken,
    StageDrain,
    StageJoin,
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
    EngineDescribe,
    EngineLoad,
    InstanceUnload,
    JoinRequest,
    JoinAccept,
    ModelDescribe,
    PeerDial,
    PeerDrop,
    StageDrain,
    StageJoin,
)
_OBSERVER: tuple[type[Message], ...] = (Query, Reply, RequestCancel, LinkHello, LinkSubscribe, LinkBye)
_GATEWAY: tuple[type[Message], ...] = (
    *_OBSERVER,
    InstanceEnsure,
    ActorDown,
    DownloadFailed,
    DownloadProgress,
    Log,
    SessionCheck,
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
    """Return whether a node of this role may send this kind over a link. Unknown kinds are those of newer members."""
    message = MESSAGES.get(kind)
    if message is None:
        return role is Role.MEMBER
    return issubclass(message, _ALLOWED[role]) and not issubclass(message, _OFF_LINKS)
