"""Joining for tests: clients of hubs that join, and a raw client of a join port."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import zmq

from bus.client import BusClient
from bus.messages import (
    ClusterChanged,
    JoinRequest,
    MembersGet,
    MembersState,
    Message,
    PeerAuthenticated,
    PeerDial,
    PeerDown,
    PeerRefused,
    PeerUp,
    RequestDone,
)
from bus.net.endpoints import with_key
from bus.net.keys import KeyPair, join_proof, key_pair_of
from bus.net.sockets import connect, open_socket
from bus.wire import decode, encode, new_header
from cluster.join_code import JoinCode
from cluster.membership import MemberStatus
from tests.support.bus import RunningHub, client, code_of

FACTS: tuple[type[Message], ...] = (PeerAuthenticated, PeerRefused, PeerUp, PeerDown, ClusterChanged)


def client_of(hub: RunningHub, name: str = "one") -> AbstractAsyncContextManager[BusClient]:
    """Start a client that receives the facts about joining."""
    return client(hub.run_dir, hub.node_id, name, *FACTS)


async def dial(bus: BusClient, hub: RunningHub) -> None:
    """Have a hub join at another one."""
    await bus.request("hub", PeerDial(hub.join_endpoint), RequestDone, 5.0)


async def members(bus: BusClient) -> dict[str, MemberStatus]:
    """Return the status of each member that the hub knows, by node id."""
    state = await bus.request("hub", MembersGet(), MembersState, 5.0)
    return {member.node_id: member.status for member in state.members}


def reply_at_join_port(
    hub: RunningHub, pair: KeyPair, code: JoinCode | None = None, request: JoinRequest | None = None
) -> Message | None:
    """Ask to join with this key, and return the reply, or None if there is none."""
    keys = (code or code_of("home")).keys()
    port_key = key_pair_of(keys.join_secret).public
    role = next(iter(keys.join))
    proof = join_proof(keys.join, role, pair.public, port_key)
    sent = request or JoinRequest("guest", role, 1, with_key("tcp://127.0.0.1:1", pair.public), proof)
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.SNDTIMEO, 2000)
        connect(dealer, with_key(hub.join_endpoint, port_key), pair)
        try:
            dealer.send_multipart(encode("/hub", new_header(sent, f"{pair.node_id}/hub"), sent))
        except zmq.Again:
            return None
        return decode(dealer.recv_multipart()).message if dealer.poll(2000) else None
