"""Where a data plane listens, which nodes it accepts connections from, and which endpoints it may connect to.

Within a machine it uses ipc, with files that only this user can open; between machines tcp with CURVE keys, and only
in a cluster. Knows nothing of frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zmq

from bus.dataplane.connections import NotLinked
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
class LocalAccess:
    """The data plane of a node that stands alone: ipc only, so processes of this user only."""

    own_id: str = ""
    allowlist: None = None

    def role_of(self, node_id: str) -> Role | None:
        """Return MEMBER for "", which is a process of this user; None for any node."""
        return None if node_id else Role.MEMBER

    def bind(self, inbox: Socket, run_dir: Path, name: str) -> tuple[str, ...]:
        """Listen on an ipc endpoint in the node's run folder. Raises OSError."""
        return (_bind_ipc(inbox, run_dir, name),)

    def start_zap(self, context: zmq.Context[zmq.Socket[bytes]]) -> ZapHandler | None:
        """Return None: there is no tcp port to authenticate at."""
        return None

    def check_linked(self, endpoint: str) -> str:
        """Return "" for an ipc endpoint. Raises NotLinked for another node's, ValueError for a malformed one."""
        if node_at(endpoint):
            raise NotLinked(f"{endpoint} is another node's, and this one stands alone; start it with --join")
        return ""

    def dial(self, dealer: Socket, endpoint: str) -> str:
        """Connect without waiting. Returns and raises as `check_linked`."""
        self.check_linked(endpoint)
        _connect_ipc(dealer, endpoint)
        return ""


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """The data plane of a node in a cluster: the host to listen on, the node's key pair, and the linked nodes."""

    host: str
    pair: KeyPair
    allowlist: PeerAllowlist

    @property
    def own_id(self) -> str:
        """This node's id."""
        return self.pair.node_id

    def role_of(self, node_id: str) -> Role | None:
        """Return a node's role, MEMBER for "", which is a process of this user; None for a node that is not linked."""
        return self.allowlist.role_of(node_id) if node_id else Role.MEMBER

    def bind(self, inbox: Socket, run_dir: Path, name: str) -> tuple[str, ...]:
        """Listen on an ipc endpoint in the node's run folder and on a free tcp port. Raises OSError."""
        return _bind_ipc(inbox, run_dir, name), bind_tcp(inbox, self.host, 0, CurveServer(self.pair, DOMAIN))

    def start_zap(self, context: zmq.Context[zmq.Socket[bytes]]) -> ZapHandler | None:
        """Accept linked nodes at the context's tcp ports. Close the handler before the context."""
        return ZapHandler(context, self.allowlist.authenticate)

    def check_linked(self, endpoint: str) -> str:
        """Return the node that listens on an endpoint, "" for an ipc one.

        Raises NotLinked if it is not linked to this one, and ValueError for tcp without a key.
        """
        node_id = node_at(endpoint)
        if self.role_of(node_id) is None:
            raise NotLinked.to_node(node_id)
        return node_id

    def dial(self, dealer: Socket, endpoint: str) -> str:
        """Connect without waiting. Returns and raises as `check_linked`."""
        node_id = self.check_linked(endpoint)
        if node_id:
            connect(dealer, endpoint, self.pair)
        else:
            _connect_ipc(dealer, endpoint)
        return node_id


Access = LocalAccess | ClusterAccess
LOCAL = LocalAccess()


def access_of(config: NodeConfig) -> Access:
    """Return a node's access, with no node linked yet. Raises PrivateFileError if the node's key cannot be read."""
    if not config.cluster:
        return LOCAL
    pair = own_key(config)
    return ClusterAccess(config.host, pair, PeerAllowlist(pair.public, pair.node_id))


def node_at(endpoint: str) -> str:
    """Return the node that listens on an endpoint; "" for an ipc one. Raises ValueError for tcp without a key."""
    return "" if endpoint.startswith(IPC) else node_of(endpoint)


def best_endpoint(endpoints: Sequence[str], node_id: str = "") -> str:
    """Return the endpoint to use from here: ipc if its file is on this machine, else the first tcp one.

    The file's folder has a random name, so finding it means the same machine. Raises ValueError if none can be used,
    or if a tcp one is not `node_id`'s, unless that is "".
    """
    for endpoint in endpoints:
        if endpoint.startswith(IPC):
            if _is_ours(endpoint):
                return endpoint
        elif not node_id or node_of(endpoint) == node_id:
            return endpoint
        else:
            raise ValueError(f"{endpoint} does not belong to node {node_id}, as the instance says")
    raise ValueError(f"none of the endpoints {', '.join(endpoints)} can be reached from this machine")


def owner_of(endpoints: Sequence[str]) -> str:
    """Return the node that these endpoints belong to; "" if all are ipc ones. Raises ValueError for several nodes."""
    owners = {node_of(endpoint) for endpoint in endpoints if not endpoint.startswith(IPC)}
    if len(owners) > 1:
        raise ValueError("these endpoints belong to several nodes")
    return owners.pop() if owners else ""


def reply_endpoint(endpoints: Sequence[str], own_id: str) -> str:
    """Return the endpoint to reply to, of those that came with an opening. Raises ValueError if none can be used.

    An ipc endpoint is used only if the opening came from this node: named by another node, it could be any process of
    this user, which would accept the reply as its own.
    """
    if owner_of(endpoints) in ("", own_id):
        return best_endpoint(endpoints)
    return best_endpoint([endpoint for endpoint in endpoints if not endpoint.startswith(IPC)])


def _bind_ipc(inbox: Socket, run_dir: Path, name: str) -> str:
    file = run_dir / f"{name}{SUFFIX}"
    file.unlink(missing_ok=True)
    bind_ipc(inbox, f"{IPC}{file}")
    return f"{IPC}{file}"


def _connect_ipc(dealer: Socket, endpoint: str) -> None:
    try:
        connect_ipc(dealer, endpoint, only_sends=True)
    except zmq.ZMQError as error:
        raise ValueError(f"{endpoint!r} is no endpoint: {error}") from None


def _is_ours(endpoint: str) -> bool:
    """Return whether a data plane of this user listens there, as far as files show."""
    path = Path(endpoint.removeprefix(IPC))
    if path.suffix != SUFFIX or not path.is_absolute():
        return False
    try:
        folder = os.stat(path.parent)
        return folder.st_uid == os.getuid() and not folder.st_mode & 0o022 and path.exists()
    except (OSError, ValueError):  # a null byte is a ValueError
        return False
