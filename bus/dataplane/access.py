"""How a data plane reaches others: where it listens, whom it lets in, which of an end point's forms it dials.

Within a machine ipc, whose files only this user can open; between machines tcp with keys, and only in a cluster. Knows
nothing of frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq

from bus.dataplane.peer_allowlist import PeerAllowlist
from bus.net.endpoints import node_of
from bus.net.identity import own_key
from bus.net.keys import KeyPair
from bus.net.sockets import CurveServer, Socket, bind_ipc, bind_tcp, connect, connect_ipc
from bus.net.zap import ZapHandler
from cluster.roles import Role
from common.config import NodeConfig

IPC = "ipc://"
SUFFIX = ".ring"
DOMAIN = "ring"


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """A place among the nodes of a cluster: the host to listen at, as whom, and whose connections are taken."""

    host: str
    pair: KeyPair
    linked: PeerAllowlist


class NotLinked(ValueError):
    """An end point belongs to a node that this one has no link to; the message is one sentence."""


def cluster_access(config: NodeConfig) -> ClusterAccess | None:
    """A node's place in its cluster, with no links yet; None where it stands alone. Raises PrivateFileError."""
    if not config.cluster:
        return None
    pair = own_key(config)
    return ClusterAccess(config.host, pair, PeerAllowlist(pair.public, pair.node_id))


def listen(inbox: Socket, run_dir: Path, name: str, reach: ClusterAccess | None) -> tuple[str, ...]:
    """Bind to an ipc end point in a node's run folder and, in a cluster, to a free tcp port. Raises OSError."""
    file = run_dir / f"{name}{SUFFIX}"
    file.unlink(missing_ok=True)
    bind_ipc(inbox, f"{IPC}{file}")
    if reach is None:
        return (f"{IPC}{file}",)
    return f"{IPC}{file}", bind_tcp(inbox, reach.host, 0, CurveServer(reach.pair, DOMAIN))


def let_in(context: zmq.Context[zmq.Socket[bytes]], reach: ClusterAccess | None) -> ZapHandler | None:
    """Let linked nodes through the context's tcp ports. To be closed before the context."""
    return ZapHandler(context, reach.linked.allow) if reach else None


def role_of(reach: ClusterAccess | None, node: str) -> Role | None:
    """What a node may do, where "" stands for a process of this user; None for one that is not linked."""
    if not node:
        return Role.MEMBER
    return reach.linked.role_of(node) if reach else None


def node_at(endpoint: str) -> str:
    """The node that listens at an end point; "" for an ipc one. Raises ValueError for tcp without a key."""
    return "" if endpoint.startswith(IPC) else node_of(endpoint)


def check_linked(endpoint: str, reach: ClusterAccess | None) -> str:
    """The node that listens at an end point. Raises NotLinked, and ValueError for what names no node."""
    node = node_at(endpoint)
    if node and reach is None:
        raise NotLinked(f"{endpoint} is another node's, and this one stands alone; start it with --join")
    if role_of(reach, node) is None:
        raise NotLinked(f"node {node} is not linked to this one; look at `exobus cluster ls`")
    return node


def dial(dealer: Socket, endpoint: str, reach: ClusterAccess | None) -> str:
    """Begin to connect; answers whose the end point is. Raises as `check_linked`."""
    node = check_linked(endpoint, reach)
    if reach and node:
        connect(dealer, endpoint, reach.pair)
    else:
        _dial_ipc(dealer, endpoint)
    return node


def best_endpoint(endpoints: Sequence[str], node_id: str = "") -> str:
    """The end point to use from here: ipc where its file is on this machine, else the first tcp one.

    The file's folder has a random name, so finding it means the same machine. Raises ValueError where none is left, or
    where a tcp one is not `node_id`'s, if that is given.
    """
    for endpoint in endpoints:
        if endpoint.startswith(IPC):
            if _is_ours(endpoint):
                return endpoint
        elif not node_id or node_of(endpoint) == node_id:
            return endpoint
        else:
            raise ValueError(f"{endpoint} does not belong to node {node_id}, which is said to be there")
    raise ValueError(f"none of the end points {', '.join(endpoints)} can be reached from this machine")


def owner_of(endpoints: Sequence[str]) -> str:
    """The node whose end points these are; "" where all are ipc ones. Raises ValueError where they are several's."""
    owners = {node_of(endpoint) for endpoint in endpoints if not endpoint.startswith(IPC)}
    if len(owners) > 1:
        raise ValueError("these end points belong to several nodes")
    return owners.pop() if owners else ""


def reply_endpoint(endpoints: Sequence[str], own_id: str) -> str:
    """Where to answer whoever told these end points. Raises ValueError where there is no way.

    Another node may name no ipc end point: it could be any process of this user, which would believe that the answer
    was meant for it.
    """
    if owner_of(endpoints) in ("", own_id):
        return best_endpoint(endpoints)
    return best_endpoint([endpoint for endpoint in endpoints if not endpoint.startswith(IPC)])


def _dial_ipc(dealer: Socket, endpoint: str) -> None:
    try:
        connect_ipc(dealer, endpoint, only_sends=True)
    except zmq.ZMQError as error:
        raise ValueError(f"{endpoint!r} is no end point: {error}") from None


def _is_ours(endpoint: str) -> bool:
    """Whether a data plane of this user listens there, as far as files tell."""
    path = Path(endpoint.removeprefix(IPC))
    if path.suffix != SUFFIX or not path.is_absolute():
        return False
    try:
        folder = os.stat(path.parent)
        return folder.st_uid == os.getuid() and not folder.st_mode & 0o022 and path.exists()
    except (OSError, ValueError):  # a null byte is a ValueError
        return False
