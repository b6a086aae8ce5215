"""`bus.peering.admin`: revoking, approving and rotating, with hubs on loopback."""

from __future__ import annotations

import asyncio

import pytest
import zmq

from bus.client import BusClient, RequestError
from bus.messages import (
    ClusterChanged,
    ClusterRotate,
    ClusterRotated,
    JoinAccept,
    LinkProbe,
    MemberApprove,
    MemberRevoke,
    PeerDown,
    PeerRefused,
    PeerUp,
    RequestDone,
)
from bus.net.keys import new_key_pair
from bus.net.sockets import connect, open_socket
from bus.wire import encode, new_header
from cluster.join_code import parse_join_code
from cluster.membership import MemberStatus
from cluster.roles import Role
from common.private_files import read_private
from tests.support.bus import KEYS, RunningHub, code_of, described, link, new_node, next_message, run, running_hub
from tests.support.network.joining import client_of, dial, members, reply_at_join_port

A, B, C = new_node(), new_node(), new_node()


def test_revoked_node_is_unlinked_and_refused() -> None:
    async def test(first: RunningHub, second: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two:
            await link(one, second.join_endpoint)
            await next_message(two, PeerUp)
            await one.request("hub", MemberRevoke(B), RequestDone, 5.0)
            assert (await next_message(one, PeerDown))[0] == PeerDown(B, "its key was revoked", f"name of {B}")
            assert (await next_message(two, PeerDown))[0].node_id == A
            await dial(two, first)
            refused, _ = await next_message(two, PeerRefused, within_s=3.0)
            assert refused.code == "revoked"
            assert "it was revoked in cluster home" in refused.message

    with running_hub(A) as first, running_hub(B) as second:
        run(test(first, second))


def test_messages_of_a_revoked_node_are_dropped() -> None:
    async def test(first: RunningHub) -> None:
        async with client_of(first) as one, client_of(first, "worker") as worker:
            with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
                connect(dealer, first.endpoint, KEYS[B])
                probe = LinkProbe()
                dealer.send_multipart(encode(f"{A}/worker", new_header(probe, f"{B}/node", sequence=1), probe))
                await next_message(worker, LinkProbe)
                await one.request("hub", MemberRevoke(B), RequestDone, 5.0)
                dealer.send_multipart(encode(f"{A}/worker", new_header(probe, f"{B}/node", sequence=2), probe))
                await described(one, lambda state: "dropped: foreign" in state.counters)

    with running_hub(A, knows=(B,)) as first:
        run(test(first))


def test_revocation_reaches_present_and_later_members() -> None:
    async def test(first: RunningHub, second: RunningHub, third: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two, client_of(third) as three:
            await link(one, second.join_endpoint)
            await one.request("hub", MemberRevoke("f" * 16), RequestDone, 5.0)
            await until(two, {"f" * 16: MemberStatus.REVOKED})
            await link(three, second.join_endpoint)
            await until(three, {"f" * 16: MemberStatus.REVOKED})
            await one.request("hub", MemberApprove("f" * 16), RequestDone, 5.0)
            await until(two, {"f" * 16: MemberStatus.APPROVED})

    with running_hub(A) as first, running_hub(B) as second, running_hub(C) as third:
        run(test(first, second, third))


async def until(bus: BusClient, expected: dict[str, MemberStatus]) -> None:
    """Ask a hub for its members until these are among them."""
    async with asyncio.timeout(5.0):
        while not expected.items() <= (await members(bus)).items():  # noqa: ASYNC110 - each round asks the hub
            await asyncio.sleep(0)


def test_rotated_code_replaces_the_old_one() -> None:
    async def test(first: RunningHub, second: RunningHub, watcher: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two, client_of(watcher) as three:
            await link(one, second.join_endpoint)
            await link(three, first.join_endpoint)
            rotated = await one.request("hub", ClusterRotate(), ClusterRotated, 5.0)
            assert rotated.updated == tuple(sorted((f"name of {B}", f"name of {C}")))
            for bus in (one, two, three):
                await next_message(bus, ClusterChanged)
            codes = [code_in(hub) for hub in (first, second, watcher)]
            assert codes[0] == codes[1] != code_of("home").text()
            assert parse_join_code(codes[0]).invite(Role.OBSERVER).text() == codes[2]
            assert await asyncio.to_thread(reply_at_join_port, first, new_key_pair()) is None
            for hub in (first, second):
                reply = await asyncio.to_thread(reply_at_join_port, hub, new_key_pair(), parse_join_code(codes[0]))
                assert isinstance(reply, JoinAccept)
            assert len((await described(one, lambda _: True)).peers) == 2  # links do not depend on the code

    with running_hub(A) as first, running_hub(B) as second, running_hub(C, role=Role.OBSERVER) as watcher:
        run(test(first, second, watcher))


def test_observer_cannot_rotate() -> None:
    async def test(hub: RunningHub) -> None:
        async with client_of(hub) as one:
            with pytest.raises(RequestError, match="only a member can rotate"):
                await one.request("hub", ClusterRotate(), ClusterRotated, 5.0)

    with running_hub(A, role=Role.OBSERVER) as hub:
        run(test(hub))


def code_in(hub: RunningHub) -> str:
    return read_private(hub.run_dir / "join-code")
